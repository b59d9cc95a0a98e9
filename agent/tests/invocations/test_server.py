"""Invocations over a real connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cupola_agent import Agent, Request

from agent.tests.invocations.serving import serving

LAST_CHUNK = b"0\r\n\r\n"


@asynccontextmanager
async def asking(function: Callable[..., Any], body: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    """What is answered to an invocation; leaving the block closes the connection."""
    agent = Agent(environ={})
    agent.invocations(function)
    async with serving(agent) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"POST /invocations HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            yield reader
        finally:
            writer.close()
            await writer.wait_closed()


async def test_a_whole_stream_ends_with_its_last_chunk() -> None:
    async def pieces() -> AsyncIterator[str]:
        yield "one"

    async with asking(pieces) as answer:
        assert (await answer.readuntil(LAST_CHUNK)).endswith(b"\r\n3\r\none\r\n0\r\n\r\n")


async def test_a_stream_that_fails_is_cut_without_a_last_chunk(caplog: pytest.LogCaptureFixture) -> None:
    async def pieces() -> AsyncIterator[str]:
        yield "one"
        await asyncio.sleep(0)
        raise LookupError("lost")

    async with asking(pieces) as answer:
        text = await answer.read()
    assert b"\r\n3\r\none\r\n" in text
    assert not text.endswith(LAST_CHUNK)
    assert "LookupError: lost" in caplog.text


async def test_a_client_that_hangs_up_cancels_the_handler() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def waits() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    agent = Agent(environ={})
    agent.invocations(waits)
    async with asyncio.timeout(10), serving(agent) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /invocations HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
        await begun.wait()
        writer.close()
        await ended.wait()


async def test_a_large_body_goes_through_in_pieces() -> None:
    async def lengths(stream: AsyncIterator[bytes], request: Request) -> dict[str, Any]:
        sizes = [len(piece) async for piece in stream]
        return {"sum": sum(sizes), "many": len(sizes) > 1, "whole": len(request.body)}

    async with asking(lengths, bytes(3_000_000)) as answer:
        await answer.readuntil(b"\r\n\r\n")
        assert await answer.readuntil(b"}") == b'{"sum":3000000,"many":true,"whole":0}'
