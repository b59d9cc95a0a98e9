"""Small HTTP servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Answer:
    """`sent` bytes of the body leave before the connection is cut; None sends all."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None


TLS_HANDSHAKE = b"\x16"

Handler = Callable[[Request], Answer]


@asynccontextmanager
async def serve(handler: Handler, socket: Path | None = None) -> AsyncIterator[str]:
    """Serve on a free port of the loopback interface, or on a socket; yields `host:port`."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1)
        if first and first != TLS_HANDSHAKE:
            await answer(handler, first, reader, writer)
        writer.close()

    if socket is not None:
        server = await asyncio.start_unix_server(connected, str(socket))
        name = str(socket)
    else:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield name


async def answer(handler: Handler, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    reply = handler(Request(method, path, headers, body))
    lines = [f"HTTP/1.1 {reply.status} -", f"Content-Length: {len(reply.body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + reply.body[: reply.sent])
    await writer.drain()
