"""WebSockets to agents, over the server's own connections. The client is the `websockets` library."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import uvicorn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from cupola.gateway.connection import BoundedConnection
from cupola.gateway.frames import close_frame
from cupola.identity.tokens import AUDIENCE
from cupola.sessions.lifecycle import Status
from cupola.sessions.live import LiveSession
from tests.unit.api.application import Application
from tests.unit.sandbox.servers import Peer, Request, answer
from tests.unit.sessions.world import ADA, BOB, Die, World, program

AGENT = "/api/projects/default/agents/echo/endpoint/protocols"
AT_AGENT = f"{AGENT}/invocations_ws"
DECLARED = [{"protocol": "responses", "version": "v1"}, {"protocol": "invocations_ws", "version": "v1"}]
DEADLINE = 20
TEXT, CLOSE = 1, 8


class Talking:
    """An agent that answers each message with itself, and does what some of them say."""

    def __init__(self) -> None:
        self.handshakes: list[Request] = []
        self.closed = asyncio.Event()
        self.extra = b""

    async def __call__(self, peer: Peer, head: Request) -> None:
        self.handshakes.append(head)
        key = (head.header(b"sec-websocket-key") or b"") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest())
        await peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nserver: own\r\n"
            b"sec-websocket-accept: " + accept + b"\r\n" + self.extra + b"\r\n"
        )
        try:
            while await self._turn(peer):
                pass
            # The server closes the connection after the last frame.
            raise ConnectionError
        finally:
            self.closed.set()

    async def _turn(self, peer: Peer) -> bool:
        first, second = await peer.reader.readexactly(2)
        size = second & 127
        if size == 126:
            (size,) = struct.unpack(">H", await peer.reader.readexactly(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", await peer.reader.readexactly(8))
        mask = await peer.reader.readexactly(4)
        data = await peer.reader.readexactly(size)
        data = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        if data == b"die":
            raise Die
        if data == b"die within":
            await peer.send(b"\x81\x05hal")
            raise Die
        if data == b"leave":
            raise ConnectionError
        length = bytes((size,)) if size < 126 else b"\x7e" + struct.pack(">H", size)
        await peer.send(bytes((first,)) + length + data)
        return first & 15 != CLOSE


class Front:
    """The application behind the server's own HTTP."""

    def __init__(self, application: Application, server: uvicorn.Server, port: int) -> None:
        self.application = application
        self.server = server
        self.port = port

    def token(self, caller: object = ADA) -> str:
        return self.application.tokens.issue(BOB if caller is BOB else ADA, AUDIENCE).text

    def connect(self, path: str = AT_AGENT, **arguments: object) -> connect:
        arguments.setdefault("additional_headers", {"authorization": f"Bearer {self.token()}"})
        return connect(f"ws://127.0.0.1:{self.port}{path}", proxy=None, compression=None, **arguments)  # type: ignore[arg-type]


@pytest.fixture
async def front(application: Application) -> AsyncIterator[Front]:
    config = uvicorn.Config(
        application.asgi,
        http=BoundedConnection,
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server._serve([listening]))
    while not server.started:
        await asyncio.sleep(0.001)
    yield Front(application, server, listening.getsockname()[1])
    server.should_exit = True
    await serving


@pytest.fixture
async def talking(world: World) -> Talking:
    talking = Talking()
    world.programs["talking"] = program(talking)
    await world.add(image="talking", protocol_versions=DECLARED)
    return talking


async def said(client: ClientConnection, message: str | bytes) -> str | bytes:
    await client.send(message)
    async with asyncio.timeout(DEADLINE):
        return await client.recv()


async def end(client: ClientConnection) -> tuple[int | None, str | None]:
    """How the other side closed the socket."""
    async with asyncio.timeout(DEADLINE):
        try:
            while True:
                await client.recv()
        except ConnectionClosed as closed:
            return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (None, None)


async def test_messages_pass_unchanged_in_both_directions(front: Front, talking: Talking) -> None:
    async with front.connect() as client:
        for message in ("hello", "", b"\x00\xff", "x" * 125, b"y" * 126, b"z" * 60_000):
            assert await said(client, message) == message
        await client.close(4321, "done")
    assert (client.close_code, client.close_reason) == (4321, "done")


async def test_the_agent_sees_the_handshake_without_what_is_not_for_it(front: Front, talking: Talking) -> None:
    headers = {"authorization": f"Bearer {front.token()}", "cookie": "a=b", "origin": "https://x", "x-client-a": "1"}
    path = f"{AT_AGENT}?api-version=v1&agent_session_id=session-1&highest=%2010"
    async with front.connect(path, additional_headers=headers, subprotocols=[Subprotocol("chat")]) as client:
        assert await said(client, "x") == "x"
        assert client.response is not None
        shown = {name.lower(): value for name, value in client.response.headers.raw_items()}
    (seen,) = talking.handshakes
    assert (seen.method, seen.target) == (
        b"GET",
        b"/invocations_ws?agent_session_id=session-1&api-version=v1&highest=%2010",
    )
    names = {name for name, _ in seen.headers}
    assert not names & {b"authorization", b"cookie", b"origin", b"content-length", b"transfer-encoding"}
    assert seen.header(b"sec-websocket-protocol") == b"chat"
    assert seen.header(b"x-client-a") == b"1"
    assert set(shown) == {"upgrade", "connection", "sec-websocket-accept", "x-agent-session-id", "x-request-id"}
    assert shown["x-agent-session-id"] == "session-1"


async def test_a_browser_offers_its_token_as_a_subprotocol(front: Front, talking: Talking) -> None:
    offered = [Subprotocol("cupola.bearer"), Subprotocol(front.token())]
    async with front.connect(additional_headers={}, subprotocols=offered) as client:
        assert await said(client, "x") == "x"
        assert client.subprotocol == "cupola.bearer"
    talking.extra = b"sec-websocket-protocol: chat\r\n"
    async with front.connect(additional_headers={}, subprotocols=[*offered, Subprotocol("chat")]) as client:
        assert client.subprotocol == "chat"
    assert [seen.header(b"sec-websocket-protocol") for seen in talking.handshakes] == [None, b"chat"]


async def test_the_old_address_leads_to_the_same_place(front: Front, talking: Talking) -> None:
    old = "/api/projects/agents/endpoint/protocols/invocations_ws"
    for project in ("default", "_project"):
        query = f"?project_name={project}&agent_name=echo&agent_session_id=session-1"
        async with front.connect(old + query) as client:
            assert await said(client, "x") == "x"
    for query, status in (
        ("", 400),
        ("?project_name=default", 400),
        ("?project_name=a%2Fb&agent_name=echo", 400),
        ("?project_name=nowhere&agent_name=echo", 404),
        ("?project_name=default&agent_name=nobody", 404),
    ):
        assert await refusal(front, old + query) == status


async def test_turns_over_a_socket_at_the_agents_responses(front: Front, talking: Talking) -> None:
    for base in (f"{AGENT}/openai", f"{AGENT}/openai/v1"):
        async with front.connect(f"{base}/responses?agent_session_id=session-1") as client:
            assert await said(client, '{"type": "response.create"}') == '{"type": "response.create"}'
    assert {seen.target for seen in talking.handshakes} == {b"/responses?agent_session_id=session-1"}
    assert await refusal(front, "/api/projects/default/openai/v1/responses") == 400


async def refusal(front: Front, path: str = AT_AGENT, **arguments: object) -> int:
    with pytest.raises(InvalidStatus) as caught:
        async with front.connect(path, **arguments):
            pass
    return caught.value.response.status_code


async def test_a_socket_is_refused_like_any_request(world: World, front: Front, talking: Talking) -> None:
    assert await refusal(front, additional_headers={}) == 401
    assert await refusal(front, AT_AGENT.replace("echo", "nobody")) == 404
    assert await refusal(front, f"{AT_AGENT}?agent_session_id=short") == 400
    async with front.connect(f"{AT_AGENT}?agent_session_id=session-1"):
        pass
    bobs = {"authorization": f"Bearer {front.token(BOB)}"}
    assert await refusal(front, f"{AT_AGENT}?agent_session_id=session-1", additional_headers=bobs) == 403
    await world.add("mute", protocol_versions=[{"protocol": "responses", "version": "v1"}])
    assert await refusal(front, AT_AGENT.replace("echo", "mute")) == 400


async def test_an_agents_own_refusal_is_passed_on(world: World, front: Front) -> None:
    async def refuse(peer: Peer, head: Request) -> None:
        await peer.send(answer(b"no sockets", b"403 Forbidden", b"content-type: text/plain"))

    world.programs["refuse"] = program(refuse)
    await world.add(image="refuse", protocol_versions=DECLARED)
    with pytest.raises(InvalidStatus) as caught:
        async with front.connect():
            pass
    refused = caught.value.response
    assert (refused.status_code, refused.body) == (403, b"no sockets")
    assert refused.headers["x-agent-session-id"]


def only(world: World) -> LiveSession:
    (live,) = world.manager._live.values()
    return live


async def test_an_open_socket_keeps_the_sandbox_awake(world: World, front: Front, talking: Talking) -> None:
    async with front.connect() as client:
        assert await said(client, "x") == "x"
        world.age += 3000
        world.manager._put_to_rest()
        assert only(world).status is Status.RUNNING
        assert await said(client, "y") == "y"
    await world.until(lambda: not only(world).busy)
    world.age += 901
    world.manager._put_to_rest()
    await world.until(lambda: not world.manager._live)


@pytest.mark.parametrize("last", ["die", "leave"])
async def test_an_agent_that_ends_without_a_word_closes_the_socket_with_1011(
    front: Front, talking: Talking, last: str
) -> None:
    async with front.connect() as client:
        assert await said(client, "x") == "x"
        await client.send(last)
        assert await end(client) == (1011, "The agent ended the connection without a close frame.")


async def test_an_agent_that_dies_within_a_message_breaks_the_socket_off(front: Front, talking: Talking) -> None:
    async with front.connect() as client:
        await client.send("die within")
        assert await end(client) == (None, None)


async def test_a_session_that_is_stopped_closes_its_sockets(world: World, front: Front, talking: Talking) -> None:
    async with front.connect() as client:
        assert await said(client, "x") == "x"
        await only(world).stop()
        assert (await end(client))[0] == 1011


async def test_a_server_that_ends_says_so(front: Front, talking: Talking) -> None:
    async with front.connect() as client:
        assert await said(client, "x") == "x"
        front.server.should_exit = True
        assert await end(client) == (1012, "The server is shutting down.")


async def test_a_client_that_vanishes_ends_the_agents_side(world: World, front: Front, talking: Talking) -> None:
    async with front.connect() as client:
        assert await said(client, "x") == "x"
        client.transport.abort()
        await asyncio.wait_for(talking.closed.wait(), DEADLINE)
    await world.until(lambda: not only(world).busy)


async def raw(front: Front, *lines: bytes, rest: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port)
    head = [
        b"GET " + AT_AGENT.encode() + b"?agent_session_id=session-1 HTTP/1.1",
        b"host: x", b"authorization: Bearer " + front.token().encode(), b"connection: Upgrade", b"upgrade: websocket",
        b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==", *lines,
    ]  # fmt: skip
    writer.write(b"\r\n".join(head) + b"\r\n\r\n" + rest)
    return reader, writer


VERSION = b"sec-websocket-version: 13"
HELLO = b"\x81\x82\0\0\0\0hi"


async def test_what_comes_together_with_the_handshake_is_not_lost(front: Front, talking: Talking) -> None:
    reader, writer = await raw(front, VERSION, rest=HELLO)
    async with asyncio.timeout(DEADLINE):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert await reader.readexactly(4) == b"\x81\x02hi"
        writer.write(HELLO)
        # What a client sends last arrives, though it closes the connection at once.
        writer.write(b"\x88\x80\0\0\0\0")
        writer.close()
        await talking.closed.wait()


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b"sec-websocket-version: 8"],
        [VERSION, b"content-length: 2"],
        [VERSION, b"transfer-encoding: chunked"],
    ],
)
async def test_an_upgrade_that_is_no_websocket_is_refused_and_closed(
    world: World, front: Front, talking: Talking, lines: list[bytes]
) -> None:
    reader, writer = await raw(front, *lines, rest=b"GET /healthz HTTP/1.1\r\n\r\n")
    async with asyncio.timeout(DEADLINE):
        answered = await reader.read()
    assert answered.startswith(b"HTTP/1.1 426 ")
    assert answered.count(b"HTTP/1.1") == 1
    assert not talking.handshakes
    writer.close()


async def test_a_reader_that_is_slow_makes_the_agent_wait(world: World, front: Front) -> None:
    sent = 0

    async def flood(peer: Peer, head: Request) -> None:
        nonlocal sent
        await peer.send(b"HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        block = b"\x82\x7f" + struct.pack(">Q", 65536) + bytes(65536)
        while sent < 1000:
            await peer.send(block)
            sent += 1
        await peer.send(close_frame(1000, ""))
        raise ConnectionError

    world.programs["flood"] = program(flood)
    await world.add(image="flood", protocol_versions=DECLARED)
    reader, writer = await raw(front, VERSION)
    await reader.readuntil(b"\r\n\r\n")
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.3)
    # 64 MB were on their way; what the kernel keeps for three sockets is some megabytes.
    assert sent < 900
    size = 0
    async with asyncio.timeout(DEADLINE):
        while data := await reader.read(1 << 20):
            size += len(data)
    assert size == 1000 * (65536 + 10) + 4
    writer.close()


async def test_a_caller_that_leaves_during_the_handshake_is_not_waited_for(world: World, front: Front) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def hang(peer: Peer, head: Request) -> None:
        arrived.set()
        await peer.closed()
        left.set()

    world.programs["hang"] = program(hang)
    await world.add(image="hang", protocol_versions=DECLARED)
    _, writer = await raw(front, VERSION)
    async with asyncio.timeout(DEADLINE):
        await arrived.wait()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await left.wait()
    await world.until(lambda: not only(world).busy)
