from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from cupola.sandbox import http
from cupola.sandbox.http import BUFFER_LIMIT, HEAD_LIMIT, AgentClient, AgentConnectionError, Response
from tests.unit.sandbox.servers import Agent, Handler, LoopbackSandbox, Peer, Request, answer

GREATEST_READ = 256 * 1024
"""What an event loop reads from a socket at once."""


class World:
    """An agent and a client of it."""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()
        self.requests: list[Request] = []

    async def __aenter__(self) -> World:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def serve(self, handler: Handler) -> AgentClient:
        self.agent = Agent(handler)
        await self._stack.enter_async_context(self.agent.serve())
        self.client = AgentClient(self.agent.sandbox)
        self._stack.callback(self.client.close)
        return self.client

    async def always(self, *answers: bytes) -> AgentClient:
        """Read requests and give these answers, over and over, on each connection."""

        async def handle(peer: Peer) -> None:
            while True:
                for data in answers:
                    self.requests.append(await peer.request())
                    await peer.send(data)

        return await self.serve(handle)

    async def once(self, data: bytes) -> AgentClient:
        """Read one request, send `data` and close."""

        async def handle(peer: Peer) -> None:
            self.requests.append(await peer.request())
            await peer.send(data)

        return await self.serve(handle)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world


async def get(client: AgentClient, target: bytes = b"/") -> tuple[int, bytes]:
    async with await client.request(b"GET", target, []) as response:
        return response.status, await response.read(1 << 20)


async def rest_of(response: Response) -> tuple[bytes, AgentConnectionError | None]:
    """What still comes, and how it ends."""
    parts = []
    try:
        async for chunk in response.chunks():
            parts.append(chunk)  # noqa: PERF401
    except AgentConnectionError as error:
        return b"".join(parts), error
    return b"".join(parts), None


# Requests


async def test_a_request_is_written_as_it_was_given(world: World) -> None:
    client = await world.always(answer(b"ok"))
    headers = [(b"accept", b"application/json"), (b"x-client-a", b"1"), (b"x-client-a", b"2")]
    async with await client.request(b"POST", b"/responses?a=b", headers, b"{}") as response:
        assert await response.read(100) == b"ok"
    assert world.requests == [
        Request(b"POST", b"/responses?a=b", ((b"host", b"agent"), (b"content-length", b"2"), *headers), b"{}")
    ]


@pytest.mark.parametrize("size", [0, 1, BUFFER_LIMIT - 1, BUFFER_LIMIT, 3 * BUFFER_LIMIT])
async def test_a_body_of_any_size_arrives_whole(world: World, size: int) -> None:
    client = await world.always(answer())
    body = bytes(number % 251 for number in range(size))
    async with await client.request(b"POST", b"/", [], body) as response:
        await response.read(0)
    assert world.requests[0].body == body


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


@pytest.mark.parametrize("parts", [(), (b"",), (b"one", b"", b"two"), (b"x" * 100_000,) * 5])
async def test_a_body_in_pieces_is_sent_in_chunks(world: World, parts: tuple[bytes, ...]) -> None:
    client = await world.always(answer(b"ok"))
    for _ in range(2):
        async with await client.request(b"POST", b"/", [(b"content-type", b"a/b")], pieces(*parts)) as response:
            assert await response.read(100) == b"ok"
    assert world.agent.connections == 1
    for request in world.requests:
        assert request.body == b"".join(parts)
        assert request.header(b"transfer-encoding") == b"chunked"
        assert request.header(b"content-length") is None


async def test_pieces_are_sent_as_they_come(world: World) -> None:
    read: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(peer: Peer) -> None:
        await peer.head()
        async for chunk in peer.chunks():
            read.put_nowait(chunk)
        await peer.send(answer())

    async def in_turn() -> AsyncIterator[bytes]:
        yield b"one"
        assert await read.get() == b"one"
        yield b"two"
        assert await read.get() == b"two"

    client = await world.serve(handle)
    async with await client.request(b"POST", b"/", [], in_turn()) as response:
        assert response.status == 200


async def test_a_body_is_not_taken_faster_than_the_agent_reads_it(world: World) -> None:
    finished = False
    finished_at_first_byte: list[bool] = []
    total = 32 << 20

    async def huge() -> AsyncIterator[bytes]:
        nonlocal finished
        for _ in range(total // 65536):
            yield bytes(65536)
        finished = True

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.reader.readexactly(7)
        finished_at_first_byte.append(finished)
        await peer.reader.readexactly(total + total // 65536 * 9 + 5 - 7)
        await peer.send(answer())

    client = await world.serve(handle)
    async with await client.request(b"POST", b"/", [], huge()) as response:
        assert response.status == 200
    assert (finished_at_first_byte, finished) == ([False], True)


async def test_an_agent_may_answer_while_the_body_is_still_being_sent(world: World) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    async def handle(peer: Peer) -> None:
        if (await peer.head()).method == b"POST":
            await peer.reader.readexactly(len(b"5\r\nfirst\r\n"))
        await peer.send(answer(b"enough", b"413 Too Large"))
        await peer.closed()

    client = await world.serve(handle)
    async with await client.request(b"POST", b"/", [], endless()) as response:
        assert response.status == 413
        assert await response.read(100) == b"enough"
    assert ended.is_set()
    # The agent still waits for the rest of the body, so another request must not be sent on that connection.
    assert await get(client) == (413, b"enough")
    assert world.agent.connections == 2


async def test_an_agent_that_answers_and_closes_during_the_body_is_heard(world: World) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)
            await asyncio.sleep(0)

    async def handle(peer: Peer) -> None:
        await peer.head()
        await peer.reader.readexactly(100_000)
        await peer.send(answer(b"enough", b"413 Too Large"))
        peer.writer.write_eof()
        await peer.closed()

    client = await world.serve(handle)
    async with await client.request(b"POST", b"/", [], endless()) as response:
        assert (response.status, await response.read(100)) == (413, b"enough")


async def test_a_body_that_cannot_be_had_breaks_the_request_off(world: World) -> None:
    seen: list[bytes] = []

    async def broken() -> AsyncIterator[bytes]:
        yield b"first"
        raise LookupError("on purpose")

    async def handle(peer: Peer) -> None:
        await peer.head()
        seen.append(await peer.reader.read())

    client = await world.serve(handle)
    with pytest.raises(LookupError):
        await client.request(b"POST", b"/", [], broken())
    while not seen:
        await asyncio.sleep(0.001)
    assert not seen[0].endswith(b"0\r\n\r\n")


# Answers

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (answer(b"hello world"), b"hello world"),
        (answer(), b""),
        (CHUNKED, b"hello world"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello world", b"hello world"),
        (b"HTTP/1.1 200\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
    ],
)
@pytest.mark.parametrize("step", [1, 7, 1000])
async def test_a_body_ends_where_its_framing_says(world: World, data: bytes, body: bytes, step: int) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        for at in range(0, len(data), step):
            await peer.send(data[at : at + step])
            await asyncio.sleep(0)

    assert await get(await world.serve(handle)) == (200, body)


async def test_headers_are_read_in_lower_case_and_in_order(world: World) -> None:
    client = await world.once(answer(b"", b"201 Made", b"X-A: 1", b"x-b:  two words ", b"X-A: 3"))
    async with await client.request(b"GET", b"/", []) as response:
        assert response.status == 201
        assert list(response.headers) == [
            (b"content-length", b"0"),
            (b"x-a", b"1"),
            (b"x-b", b"two words"),
            (b"x-a", b"3"),
        ]
        assert response.header(b"x-a") == b"1"
        assert response.header(b"x-c") is None


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_some_statuses_have_no_body_and_the_connection_goes_on(world: World, status: bytes) -> None:
    client = await world.always(b"HTTP/1.1 " + status + b"\r\nx-a: b\r\n\r\n")
    for _ in range(2):
        assert await get(client) == (int(status[:3]), b"")
    assert world.agent.connections == 1


async def test_interim_answers_are_passed_over(world: World) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    client = await world.always(interim + answer(b"ok"))
    for _ in range(2):
        async with await client.request(b"GET", b"/", []) as response:
            assert list(response.headers) == [(b"content-length", b"2")]
            assert (response.status, await response.read(100)) == (200, b"ok")
    assert world.agent.connections == 1


async def test_an_interim_answer_alone_is_no_answer(world: World) -> None:
    client = await world.once(b"HTTP/1.1 100 Continue\r\n\r\n")
    with pytest.raises(AgentConnectionError, match="before its answer was complete"):
        await get(client)


async def test_what_follows_a_chunked_body_is_not_taken_for_headers(world: World) -> None:
    data = CHUNKED.removesuffix(b"\r\n") + b"x-status: 500\r\ncontent-type: text/html\r\n\r\n"
    client = await world.always(data)
    for _ in range(2):
        async with await client.request(b"GET", b"/", []) as response:
            assert list(response.headers) == [(b"transfer-encoding", b"chunked")]
            assert await response.read(100) == b"hello world"
    assert world.agent.connections == 1


async def test_an_answer_that_nobody_asked_for_is_not_mixed_in(world: World) -> None:
    client = await world.always(answer(b"right") + answer(b"wrong", b"500 Wrong", b"x-wrong: 1"))
    for connections in (1, 2):
        async with await client.request(b"GET", b"/", []) as response:
            assert (response.status, response.header(b"x-wrong")) == (200, None)
            assert await response.read(100) == b"right"
        assert world.agent.connections == connections


async def test_the_body_is_handed_on_as_it_comes(world: World) -> None:
    read: asyncio.Queue[bytes] = asyncio.Queue()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for part in (b"one", b"two"):
            await peer.send(b"3\r\n" + part + b"\r\n")
            assert await read.get() == part
        await peer.send(b"0\r\n\r\n")

    client = await world.serve(handle)
    async with await client.request(b"GET", b"/", []) as response:
        async for chunk in response.chunks():
            read.put_nowait(chunk)
    assert read.empty()


async def test_a_reader_that_is_slow_makes_the_agent_wait(world: World) -> None:
    total = 32 << 20
    part = bytes(65536)

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % total)
        for _ in range(total // len(part)):
            await peer.send(part)
        await peer.closed()

    client = await world.serve(handle)
    async with await client.request(b"GET", b"/", []) as response:
        connection = response._connection
        while not connection._paused:
            await asyncio.sleep(0.001)
        size, most = 0, 0
        async for chunk in response.chunks():
            most = max(most, connection._buffered + len(chunk))
            size += len(chunk)
            await asyncio.sleep(0)
    assert size == total
    assert BUFFER_LIMIT < most <= BUFFER_LIMIT + GREATEST_READ


async def test_a_body_larger_than_the_limit_is_refused(world: World) -> None:
    client = await world.always(answer(b"x" * 11))
    async with await client.request(b"GET", b"/", []) as response:
        with pytest.raises(AgentConnectionError, match="larger than 10 bytes"):
            await response.read(10)


# Ends


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 10\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n5\r\n",
        b"transfer-encoding: chunked\r\n\r\n7\r\n",
    ],
)
async def test_an_agent_that_stops_in_the_middle_of_its_answer_is_noticed(world: World, head: bytes) -> None:
    client = await world.once(b"HTTP/1.1 200 OK\r\n" + head + b"hello")
    async with await client.request(b"GET", b"/", []) as response:
        found, error = await rest_of(response)
    assert found == b"hello"
    assert "before its answer was complete" in str(error)


async def test_a_connection_that_is_reset_does_not_end_a_body_without_framing(world: World) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await read.wait()
        opened: socket.socket = peer.writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.writer.transport.abort()

    read = asyncio.Event()
    client = await world.serve(handle)
    async with await client.request(b"GET", b"/", []) as response:
        assert await anext(response.chunks()) == b"hello"
        read.set()
        found, error = await rest_of(response)
    assert found == b""
    assert error is not None


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-le"])
async def test_an_agent_that_closes_before_its_answer_is_asked_once_only(world: World, data: bytes) -> None:
    client = await world.once(data)
    with pytest.raises(AgentConnectionError, match="before its answer was complete"):
        await client.request(b"POST", b"/", [], b"body")
    assert (len(world.requests), world.agent.connections) == (1, 1)


async def test_a_request_on_a_kept_connection_is_not_sent_again_on_another(world: World) -> None:
    async def handle(peer: Peer) -> None:
        for data in (answer(b"ok"), b""):
            world.requests.append(await peer.request())
            await peer.send(data)

    client = await world.serve(handle)
    assert await get(client) == (200, b"ok")
    with pytest.raises(AgentConnectionError):
        await client.request(b"POST", b"/", [], b"body")
    assert [request.method for request in world.requests] == [b"GET", b"POST"]
    assert world.agent.connections == 1


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"<html></html>\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nna me: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
)
async def test_an_answer_that_is_not_http_is_refused(world: World, data: bytes) -> None:
    client = await world.once(data)
    with pytest.raises(AgentConnectionError, match="is not HTTP"):
        await get(client)


async def test_chunks_that_are_malformed_are_refused(world: World) -> None:
    client = await world.once(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
    async with await client.request(b"GET", b"/", []) as response:
        found, error = await rest_of(response)
    assert found == b"hello"
    assert "is not HTTP" in str(error)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x-a: " + b"b" * 1000 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\nx-a: ", b"b" * 1000),
        (b"HTTP/1.1 200 ", b"O" * 1000),
        (b"", b"HTTP/1.1 103 Early Hints\r\nx-a: b\r\n\r\n"),
    ],
)
async def test_a_head_without_an_end_is_refused(world: World, first: bytes, again: bytes) -> None:
    sent = 0

    async def handle(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(first)
        while True:
            await peer.send(again)
            sent += len(again)
            await asyncio.sleep(0)

    client = await world.serve(handle)
    with pytest.raises(AgentConnectionError, match=f"larger than {HEAD_LIMIT} bytes"):
        await get(client)
    assert sent > HEAD_LIMIT // 2


@pytest.mark.parametrize("again", [b"x-a: " + b"b" * 1000 + b"\r\n", b"x" * 1000])
async def test_what_follows_a_chunked_body_must_have_an_end(world: World, again: bytes) -> None:
    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED.removesuffix(b"\r\n"))
        while True:
            await peer.send(again)
            await asyncio.sleep(0)

    client = await world.serve(handle)
    async with await client.request(b"GET", b"/", []) as response:
        found, error = await rest_of(response)
    assert found == b"hello world"
    assert f"larger than {HEAD_LIMIT} bytes" in str(error)


async def test_many_small_chunks_are_not_taken_for_a_large_head(world: World) -> None:
    number = HEAD_LIMIT // 4
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * number + b"0\r\n\r\n"
    assert await get(await world.once(chunked)) == (200, b"a" * number)


async def test_an_agent_that_listens_nowhere_is_noticed_and_no_socket_is_left() -> None:
    client = AgentClient(LoopbackSandbox(1))
    with pytest.raises(AgentConnectionError, match="does not accept connections"):
        await client.request(b"GET", b"/", [])
    # A socket that was forgotten would warn now, and warnings are errors.
    gc.collect()


# Connections


async def test_a_connection_is_used_again_after_its_answer_was_read(world: World) -> None:
    client = await world.always(answer(b"one"), CHUNKED, answer())
    bodies = [(await get(client))[1] for _ in range(6)]
    assert bodies == [b"one", b"hello world", b""] * 2
    assert world.agent.connections == 1


async def test_requests_at_once_have_connections_of_their_own(world: World) -> None:
    arrived = asyncio.Barrier(3)

    async def handle(peer: Peer) -> None:
        await peer.request()
        await arrived.wait()
        await peer.send(answer(b"ok"))
        await peer.closed()

    client = await world.serve(handle)
    assert await asyncio.gather(*(get(client) for _ in range(3))) == [(200, b"ok")] * 3
    assert world.agent.connections == 3


@pytest.mark.parametrize(
    "data",
    [
        answer(b"ok", b"200 OK", b"connection: close"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_that_the_agent_will_close_is_not_used_again(world: World, data: bytes) -> None:
    client = await world.always(data)
    for connections in (1, 2):
        assert await get(client) == (200, b"ok")
        assert world.agent.connections == connections


async def test_a_connection_whose_answer_was_not_read_is_dropped(world: World) -> None:
    closed = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"unread"))
        await peer.closed()
        closed.set()

    client = await world.serve(handle)
    async with await client.request(b"GET", b"/", []) as response:
        assert response.status == 200
    await closed.wait()
    assert await get(client) == (200, b"unread")
    assert world.agent.connections == 2


async def test_a_connection_is_not_used_again_after_it_was_idle_for_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "IDLE_LIMIT", -1.0)
    client = await world.always(answer(b"ok"))
    for connections in (1, 2):
        assert await get(client) == (200, b"ok")
        assert world.agent.connections == connections


async def test_a_kept_connection_that_the_agent_has_closed_is_not_used_again(world: World) -> None:
    client = await world.once(answer(b"ok"))
    assert await get(client) == (200, b"ok")
    while any(connection.reusable for connection in client._idle):
        await asyncio.sleep(0.001)
    assert await get(client) == (200, b"ok")
    assert world.agent.connections == 2


async def test_a_request_that_is_cancelled_closes_its_connection(world: World) -> None:
    arrived, closed = asyncio.Event(), asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        arrived.set()
        await peer.closed()
        closed.set()

    client = await world.serve(handle)
    asking = asyncio.ensure_future(get(client))
    await arrived.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await closed.wait()


async def test_a_reader_that_is_cancelled_closes_its_connection(world: World) -> None:
    reading, closed = asyncio.Event(), asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello")
        await peer.closed()
        closed.set()

    async def read() -> None:
        async with await client.request(b"GET", b"/", []) as response:
            async for _ in response.chunks():
                reading.set()

    client = await world.serve(handle)
    task = asyncio.ensure_future(read())
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await closed.wait()


async def test_a_socket_that_is_connected_already_carries_the_next_request(world: World) -> None:
    client = await world.always(answer(b"ok"))
    opened = world.agent.sandbox.open_socket()
    await asyncio.get_running_loop().sock_connect(opened, world.agent.sandbox.address)
    await client.adopt(opened)
    assert await get(client) == (200, b"ok")
    assert world.agent.connections == 1


async def test_closing_the_client_closes_the_kept_connections(world: World) -> None:
    closed = asyncio.Event()

    async def handle(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer(b"ok"))
        await peer.closed()
        closed.set()

    client = await world.serve(handle)
    await get(client)
    client.close()
    await closed.wait()
