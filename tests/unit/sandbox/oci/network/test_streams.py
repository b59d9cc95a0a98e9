from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from cupola.sandbox.oci.network.endpoint import Endpoint
from cupola.sandbox.oci.network.streams import BURST, CONNECTIONS_PER_SECOND, Handler, StreamServer


@contextlib.asynccontextmanager
async def serving(handle: Handler, most: int) -> AsyncIterator[tuple[str, int]]:
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    listening.setblocking(False)
    address: tuple[str, int] = listening.getsockname()
    server = StreamServer(listening, handle, most)
    server.open()
    try:
        yield address
    finally:
        await asyncio.wait_for(server.close(), 5)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read())


async def said(address: tuple[str, int], text: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(text)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_more_connections_than_may_be_open_wait_for_their_turn() -> None:
    open_now = most_open = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most_open
        open_now += 1
        most_open = max(most_open, open_now)
        await echo(reader, writer)
        open_now -= 1

    async with serving(handle, 3) as address:
        answers = await asyncio.gather(*(said(address, b"%d" % number) for number in range(40)))
    assert answers == [b"%d" % number for number in range(40)]
    assert most_open <= 3


@pytest.mark.parametrize("error", [OSError("broken"), EOFError(), TimeoutError(), asyncio.IncompleteReadError(b"", 1)])
async def test_what_goes_wrong_with_one_connection_is_its_own_affair(error: Exception) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read() == b"bad":
            raise error
        writer.write(b"good")

    async with serving(handle, 1) as address:
        with contextlib.suppress(ConnectionResetError):
            assert await said(address, b"bad") == b""
        assert await said(address, b"fine") == b"good"


async def test_whoever_does_not_read_holds_up_nobody_else() -> None:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    async with serving(handle, 2) as address:
        silent = await asyncio.open_connection(*address)
        reader, writer = await asyncio.open_connection(*address)
        assert len(await reader.readexactly(1_000_000)) == 1_000_000
        for opened in (silent[1], writer):
            opened.close()


async def test_connections_in_a_row_are_taken_at_a_rate() -> None:
    async with serving(echo, 64) as address:
        began = asyncio.get_running_loop().time()
        for _ in range(BURST + 10):
            assert await said(address, b"x") == b"x"
        # The last ten have waited for theirs.
        assert asyncio.get_running_loop().time() - began >= 9 / CONNECTIONS_PER_SECOND


# The platform's endpoint in a sandbox


@contextlib.asynccontextmanager
async def endpoint_of(port: int) -> AsyncIterator[tuple[str, int]]:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    address: tuple[str, int] = listening.getsockname()
    endpoint = Endpoint("one", listening, port)
    endpoint.open()
    try:
        yield address
    finally:
        await asyncio.wait_for(endpoint.close(), 5)


async def test_bytes_pass_both_ways_and_each_end_can_stop_first() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        endpoint_of(server.sockets[0].getsockname()[1]) as address,
    ):
        assert await said(address, b"hello" * 100_000) == b"HELLO" * 100_000
        reader, writer = await asyncio.open_connection(*address)
        writer.close()
        assert await reader.read() == b""


async def test_nobody_behind_the_endpoint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with endpoint_of(port) as address:
        with contextlib.suppress(ConnectionResetError):
            assert await said(address, b"hello") == b""


async def test_closing_breaks_connections_off() -> None:
    gone = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionResetError):
            while await reader.read(100):
                writer.write(b"x")
        gone.set()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        async with endpoint_of(server.sockets[0].getsockname()[1]) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"hello")
            assert await reader.readexactly(1) == b"x"
        assert await reader.read() == b""
        await asyncio.wait_for(gone.wait(), 5)
        writer.close()
