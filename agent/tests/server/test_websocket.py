"""WebSockets as the server speaks them: the handshake, messages, limits, closes (contract section 5.2)."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from cupola_agent.exchange import Socket, SocketClosedError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

Serve = Callable[..., AbstractAsyncContextManager[Any]]

KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"


def url(served: Any, path: str = "/") -> str:
    return f"ws://127.0.0.1:{served.port}{path}"


async def test_text_binary_and_fragments_go_both_ways(echo_server: Any) -> None:
    async with connect(url(echo_server)) as client:
        for message in ("hällo", b"\x00\xff", "", b"", "x" * 1_000_000):
            await client.send(message)
            assert await client.recv() == message
        await client.send(["a", "b", "ü"])
        assert await client.recv() == "abü"
        await client.send([b"a", b"b"])
        assert await client.recv() == b"ab"


async def test_the_handshake_shows_path_query_and_headers_and_chooses_nothing(serve: Serve) -> None:
    async def talk(socket: Socket) -> None:
        await socket.accept([(b"x-own", b"1")])
        offered = socket.headers["sec-websocket-protocol"]
        await socket.send(f"{socket.path} {socket.query_string.decode()} {offered} {socket.headers['x-user']}")

    async with serve(talking=talk) as served:
        client = await connect(url(served, "/a?b=c"), subprotocols=["one", "two"], additional_headers={"x-user": "me"})  # type: ignore[list-item]
        assert await client.recv() == "/a b=c one, two me"
        assert client.subprotocol is None
        assert client.response is not None
        assert client.response.headers["x-own"] == "1"
        assert "sec-websocket-extensions" not in client.response.headers
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


async def test_an_upgrade_can_be_refused(serve: Serve) -> None:
    async def talk(socket: Socket) -> None:
        if socket.path == "/rejected":
            await socket.reject(404)

    async with serve(talking=talk) as served:
        for path, status in (("/rejected", 404), ("/left", 403)):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url(served, path))
            assert refused.value.response.status_code == status
            assert refused.value.response.body == b""


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (UPGRADE, 400),
        (UPGRADE + b"Sec-WebSocket-Key: short\r\n", 400),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n" + KEY, 400),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\n" + KEY, 400),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\xff\r\n" + KEY, 400),
        (UPGRADE + b"Sec-WebSocket-Key: \xff\xfe\r\n", 400),
    ],
)
async def test_a_handshake_that_is_none(echo_server: Any, lines: bytes, status: int) -> None:
    raw = await echo_server.connect()
    raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")
    answered, headers, _ = await raw.response()
    assert (answered, headers["connection"]) == (status, "close")
    assert await raw.rest() == b""


async def test_a_frame_sent_along_with_the_handshake_is_heard(echo_server: Any) -> None:
    raw = await echo_server.connect()
    raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + KEY + b"\r\n\x81\x82\0\0\0\0hi")
    assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    assert await raw.exactly(4) == b"\x81\x02hi"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\xc1\x82\0\0\0\0hi", 1002),  # a reserved bit
        (b"\x83\x82\0\0\0\0hi", 1002),  # an unknown kind
        (b"\x80\x82\0\0\0\0hi", 1002),  # goes on with nothing
        (b"\x81\x82\0\0\0\0\xff\xff", 1007),
        (b"\x82\xff\0\0\0\0\x01\0\0\x01\0\0\0\0", 1009),  # 16 MiB and a byte
    ],
)
async def test_a_frame_that_is_not_allowed_closes(echo_server: Any, frame: bytes, code: int) -> None:
    raw = await echo_server.connect()
    raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + KEY + b"\r\n")
    await raw.until(b"\r\n\r\n")
    raw.send(frame)
    kind, size = await raw.exactly(2)
    assert kind == 0x88
    assert int.from_bytes((await raw.exactly(size))[:2], "big") == code
    assert await raw.rest() == b""


async def test_fragments_beyond_the_limit_close_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola_agent.server.websocket.MAX_MESSAGE", 1000)
    async with serve() as served, connect(url(served)) as client:
        await client.send(["x" * 600, "y" * 600])
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


async def test_an_exception_closes_with_1011_and_says_nothing_private(serve: Serve) -> None:
    async def talk(socket: Socket) -> None:
        await socket.accept()
        raise ValueError("private")

    async with serve(talking=talk) as served, connect(url(served)) as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1011, "Internal server error")


async def test_the_applications_own_close(serve: Serve) -> None:
    async def talk(socket: Socket) -> None:
        await socket.accept()
        await socket.close(4321, "ü" * 100)
        with pytest.raises(SocketClosedError):
            await socket.send("late")

    async with serve(talking=talk) as served, connect(url(served)) as client:
        with pytest.raises(ConnectionClosed) as closed:
            await client.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4321, "ü" * 61)


@pytest.mark.parametrize("code", [4000, None])
async def test_the_clients_close_is_told(serve: Serve, code: int | None) -> None:
    told: asyncio.Queue[int] = asyncio.Queue()

    async def talk(socket: Socket) -> None:
        await socket.accept()
        try:
            await socket.receive()
        except SocketClosedError as closed:
            told.put_nowait(closed.code)

    async with serve(talking=talk) as served:
        client = await connect(url(served))
        if code is None:
            client.transport.abort()
        else:
            await client.close(code)
        assert await asyncio.wait_for(told.get(), 10) == (code or 1006)


async def test_pings_are_sent_and_answered(serve: Serve) -> None:
    async with serve(ping_seconds=0.01) as served:
        raw = await served.connect()
        raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + KEY + b"\r\n")
        await raw.until(b"\r\n\r\n")
        assert await raw.exactly(2) == b"\x89\x00"
        assert await raw.exactly(2) == b"\x89\x00"
    async with serve() as served, connect(url(served)) as client:
        await asyncio.wait_for(await client.ping(b"here"), 10)


async def test_a_peer_that_does_not_read_holds_up_the_sender(serve: Serve) -> None:
    sent = 0

    async def talk(socket: Socket) -> None:
        nonlocal sent
        await socket.accept()
        for _ in range(400):
            await socket.send(bytes(100_000))
            sent += 1

    async with serve(talking=talk) as served:
        raw = await served.connect()
        raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + KEY + b"\r\n")
        await raw.until(b"\r\n\r\n")
        await asyncio.sleep(0.2)
        assert sent < 400


async def test_a_talker_that_does_not_receive_makes_the_peer_wait(serve: Serve) -> None:
    go_on = asyncio.Event()

    async def talk(socket: Socket) -> None:
        await socket.accept()
        await go_on.wait()
        for _ in range(200):
            await socket.receive()
        await socket.send("all")

    async with serve(talking=talk) as served, connect(url(served), max_queue=None) as client:

        async def send_all() -> None:
            for _ in range(200):
                await client.send(bytes(100_000))

        sending = asyncio.create_task(send_all())
        _, pending = await asyncio.wait({sending}, timeout=0.5)
        assert pending, "the server took it all"
        go_on.set()
        assert await asyncio.wait_for(client.recv(), 30) == "all"
        await sending


async def test_a_peer_that_never_answers_a_close_is_cut(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola_agent.server.websocket.CLOSE_SECONDS", 0.05)

    async def talk(socket: Socket) -> None:
        await socket.accept()

    async with serve(talking=talk) as served:
        raw = await served.connect()
        raw.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + KEY + b"\r\n")
        await raw.until(b"\r\n\r\n")
        assert await raw.rest() == b"\x88\x02\x03\xe8"
