"""A server of a tiny application on a free port, in the loop of the test, and raw connections to it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import pytest
from cupola_agent.exchange import Exchange, Socket
from cupola_agent.server.serve import Server

Answering = Callable[[Exchange], Awaitable[None]]
Talking = Callable[[Socket], Awaitable[None]]

TEXT = ((b"content-type", b"text/plain"),)
DEADLINE = 30


async def echo(exchange: Exchange) -> None:
    """Method, path, query and body, so that a test sees what arrived."""
    body = await exchange.body()
    line = f"{exchange.method} {exchange.path} {exchange.query_string.decode()} ".encode()
    exchange.respond(200, TEXT, line + body)


async def echo_messages(socket: Socket) -> None:
    await socket.accept()
    while True:
        await socket.send(await socket.receive())


@dataclass
class App:
    """An application of two functions; notes what the server tells it."""

    answering: Answering = echo
    talking: Talking = echo_messages
    told: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.told.append("start")

    def drain(self) -> None:
        self.told.append("drain")

    async def stop(self) -> None:
        self.told.append("stop")

    async def answer(self, exchange: Exchange) -> None:
        await self.answering(exchange)

    async def talk(self, socket: Socket) -> None:
        await self.talking(socket)


@dataclass
class Raw:
    """A connection of which the test sees every byte."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, *data: bytes) -> None:
        for piece in data:
            self.writer.write(piece)

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.readuntil(end)

    async def exactly(self, count: int) -> bytes:
        async with asyncio.timeout(DEADLINE):
            return await self.reader.readexactly(count)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(DEADLINE):
            return await self.reader.read()

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """One answer that has a content-length or is chunked. Chunks are joined by "|"."""
        lines = (await self.until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:-2])
        if "content-length" in headers:
            body = await self.exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            chunks = []
            while size := int(await self.until(b"\r\n"), 16):
                chunks.append((await self.exactly(size + 2))[:-2])
            await self.exactly(2)
            body = b"|".join(chunks)
        else:
            body = b""
        return int(lines[0].split()[1]), headers, body

    def close(self) -> None:
        self.writer.close()


@dataclass
class Served:
    """A running server."""

    server: Server
    app: App
    port: int
    connections: list[Raw] = field(default_factory=list)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self) -> Raw:
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.port))
        self.connections.append(raw)
        return raw

    async def exchange(self, *data: bytes) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own."""
        raw = await self.connect()
        raw.send(*data)
        return await raw.response()


@asynccontextmanager
async def serving(
    answering: Answering = echo, talking: Talking = echo_messages, **options: float
) -> AsyncIterator[Served]:
    app = App(answering, talking)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server = Server(app, **{"grace_seconds": 0.0, **options})
    await server.start([listener])
    served = Served(server, app, listener.getsockname()[1])
    try:
        yield served
    finally:
        for raw in served.connections:
            raw.close()
        if "drain" not in app.told:
            served.hurry.set()
            await server.stop(served.hurry)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve() -> Serve:
    """Starts a server: `async with serve(answering, talking, grace_seconds=1) as served`."""
    return serving


@pytest.fixture
async def echo_server() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served
