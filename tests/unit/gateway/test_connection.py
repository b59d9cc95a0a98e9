"""What a caller may send before anybody knows who it is."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from cupola.gateway import connection
from cupola.gateway.connection import HEAD_LIMIT, BoundedConnection


async def _application(scope: Scope, receive: Receive, send: Send) -> None:
    size = 0
    more = True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
async def port() -> AsyncIterator[int]:
    config = uvicorn.Config(_application, http=BoundedConnection, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server._serve([listening]))
    while not server.started:
        await asyncio.sleep(0.001)
    yield listening.getsockname()[1]
    server.should_exit = True
    await serving


async def _answer(port: int, *pieces: bytes) -> bytes:
    """All that comes back; each piece is sent once the one before it was."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


START = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
CHUNKED = START + b"transfer-encoding: chunked\r\n\r\n"


async def test_an_ordinary_request_passes(port: int) -> None:
    large = 4 * HEAD_LIMIT
    assert (await _answer(port, START + b"content-length: %d\r\n\r\n" % large + bytes(large))).endswith(b"%d" % large)
    chunk = b"%x\r\n%b\r\n" % (large, bytes(large))
    assert (await _answer(port, CHUNKED + chunk * 3 + b"0\r\n\r\n")).endswith(b"%d" % (3 * large))


@pytest.mark.parametrize(
    "request_",
    [
        START + b"x: " + b"a" * HEAD_LIMIT + b"\r\n\r\n",
        START + b"x: y\r\n" * HEAD_LIMIT + b"\r\n",
        START + b"x: " + b"a" * 4 * HEAD_LIMIT,
        b"GET /" + b"a" * HEAD_LIMIT + b" HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"a" * 4 * HEAD_LIMIT,
    ],
    ids=["value", "many", "endless", "address", "method"],
)
async def test_a_head_that_is_too_long_is_refused(port: int, request_: bytes) -> None:
    answer = await _answer(port, request_)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "body",
    [b"5;" + b"a" * 5 * HEAD_LIMIT, b"1\r\nx\r\n0\r\n" + b"x: y\r\n" * HEAD_LIMIT],
    ids=["chunk extension", "trailers"],
)
async def test_what_stands_beside_a_body_is_bounded(port: int, body: bytes) -> None:
    answer = await _answer(port, CHUNKED, body)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("begun", [b"", START], ids=["nothing", "a part"])
async def test_a_head_that_takes_too_long_is_not_waited_for(
    port: int, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_DEADLINE", 0.01)
    assert await _answer(port, begun) == b""


async def test_a_slow_body_is_waited_for(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_DEADLINE", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(START + b"content-length: 2\r\n\r\nx")
    await asyncio.sleep(0.15)
    writer.write(b"y")
    assert (await reader.read()).endswith(b"2")
    writer.close()
