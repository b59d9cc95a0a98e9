"""Agents that are loopback servers of the test's own, byte for byte as it wants them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from cupola.sandbox.base import Sandbox


class LoopbackSandbox(Sandbox):
    """A sandbox whose agent listens on a loopback port of this process."""

    def __init__(self, port: int) -> None:
        super().__init__("loopback")
        self.port = port

    def open_socket(self) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)


@dataclass(frozen=True)
class Request:
    """A request as it arrived. Names of headers are in lower case."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key == name), None)


class Peer:
    """The agent's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def head(self) -> Request:
        """The head of the next request; raises IncompleteReadError when none comes."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
        method, target, _ = lines[0].split(b" ")
        pairs = (line.split(b": ", 1) for line in lines[1:])
        return Request(method, target, tuple((name.lower(), value) for name, value in pairs), b"")

    async def body(self, head: Request) -> bytes:
        if head.header(b"transfer-encoding") != b"chunked":
            return await self.reader.readexactly(int(head.header(b"content-length") or b"0"))
        parts = [chunk async for chunk in self.chunks()]
        return b"".join(parts)

    async def chunks(self) -> AsyncIterator[bytes]:
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)

    async def request(self) -> Request:
        head = await self.head()
        return Request(head.method, head.target, head.headers, await self.body(head))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def closed(self) -> None:
        """Returns once the other end has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


Handler = Callable[[Peer], Awaitable[None]]


class Agent:
    """A server that treats each connection with one handler."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.connections = 0
        self.sandbox = LoopbackSandbox(0)

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve for the length of the block. What a handler raises, the block raises."""
        async with asyncio.TaskGroup() as group:

            def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                if not server.is_serving():
                    # It was on its way when the block ended.
                    writer.close()
                    return
                self.connections += 1
                handling.append(group.create_task(self._handle(Peer(reader, writer))))

            handling: list[asyncio.Task[None]] = []
            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            self.sandbox.port = server.sockets[0].getsockname()[1]
            try:
                yield
            finally:
                server.close()
                for task in handling:
                    task.cancel()

    async def _handle(self, peer: Peer) -> None:
        try:
            await self._handler(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            # The client has closed the connection.
            return
        finally:
            peer.writer.close()


def answer(body: bytes = b"", status: bytes = b"200 OK", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
