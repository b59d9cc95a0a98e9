import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from cupola_agent import Agent, Response
from cupola_agent.testing import TestClient

KEEP_ALIVE = b": keep-alive\n\n"


def client(function: Callable[..., Any], **environ: str) -> TestClient:
    agent = Agent(environ=environ)
    agent.invocations(function)
    return TestClient(agent)


async def test_pieces_arrive_while_the_handler_runs() -> None:
    more = asyncio.Event()

    async def pieces() -> AsyncIterator[str]:
        yield "é"
        await more.wait()
        yield "2"

    async with client(pieces).stream("POST", "/invocations") as stream:
        chunks = aiter(stream.chunks())
        assert await anext(chunks) == "é".encode()
        more.set()
        assert await anext(chunks) == b"2"


async def test_a_failure_within_a_stream_breaks_it_off(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "one"
        raise LookupError("lost")

    with pytest.raises(ConnectionError):
        await client(fails).post("/invocations")
    assert "LookupError: lost" in caplog.text


async def test_a_piece_that_is_neither_text_nor_bytes_breaks_it_off(caplog: pytest.LogCaptureFixture) -> None:
    async def numbers() -> AsyncIterator[Any]:
        yield "one"
        yield 2

    with pytest.raises(ConnectionError):
        await client(numbers).post("/invocations")
    assert "streams str or bytes, not int" in caplog.text


async def test_a_client_that_leaves_cancels_an_async_handler() -> None:
    waiting = asyncio.Event()
    ended: asyncio.Queue[type[BaseException]] = asyncio.Queue()

    async def endless() -> AsyncIterator[str]:
        try:
            yield "one"
            waiting.set()
            await asyncio.Event().wait()
        except BaseException as error:
            ended.put_nowait(type(error))
            raise

    async with client(endless).stream("POST", "/invocations") as stream:
        assert await anext(aiter(stream.chunks())) == b"one"
        await waiting.wait()
    assert await asyncio.wait_for(ended.get(), 10) is asyncio.CancelledError


async def test_a_client_that_leaves_ends_a_plain_generator() -> None:
    ended = threading.Event()

    def endless() -> Iterator[str]:
        try:
            while True:
                yield "one"
        except GeneratorExit:
            ended.set()
            raise

    async with client(endless).stream("POST", "/invocations") as stream:
        assert await anext(aiter(stream.chunks())) != b""
    assert await asyncio.to_thread(ended.wait, 10)


async def test_a_client_that_leaves_cancels_a_handler_that_has_said_nothing() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    call = asyncio.create_task(client(slow).post("/invocations"))
    await begun.wait()
    call.cancel()
    await asyncio.wait_for(ended.wait(), 10)
    with pytest.raises(asyncio.CancelledError):
        await call


class Paused:
    """An event stream that halts after its first piece until it is released."""

    def __init__(self, first: str, rest: str) -> None:
        self.pieces = (first, rest)
        self.released = asyncio.Event()

    async def __call__(self) -> AsyncIterator[str]:
        first, rest = self.pieces
        if first:
            yield first
        await self.released.wait()
        yield rest


def serving(paused: Paused, media_type: str = "text/event-stream") -> TestClient:
    return client(lambda: Response(paused(), media_type=media_type), SSE_KEEPALIVE_INTERVAL="1")


@pytest.mark.parametrize("first", ["data: 1\n\n", "data: 1\r\n\r\n", ""])
async def test_a_silent_event_stream_is_kept_alive(first: str) -> None:
    paused = Paused(first, "data: 2\n\n")
    async with serving(paused).stream("POST", "/invocations") as stream:
        chunks = aiter(stream.chunks())
        if first:
            assert await anext(chunks) == first.encode()
        assert await anext(chunks) == KEEP_ALIVE
        paused.released.set()
        assert await anext(chunks) == b"data: 2\n\n"


async def test_no_keep_alive_falls_into_an_event_or_into_another_kind_of_stream() -> None:
    halved, text = Paused("data: ha", "lf\n\n"), Paused("one", "two")
    between = Paused("data: 1\n\n", "")
    async with (
        serving(halved).stream("POST", "/invocations") as within,
        serving(text, "text/plain").stream("POST", "/invocations") as plain,
        serving(between).stream("POST", "/invocations") as later,
    ):
        within_chunks, plain_chunks, later_chunks = (aiter(stream.chunks()) for stream in (within, plain, later))
        assert await anext(within_chunks) == b"data: ha"
        assert await anext(plain_chunks) == b"one"
        assert await anext(later_chunks) == b"data: 1\n\n"
        # Once the stream that began last was kept alive, the others would have been, too.
        assert await anext(later_chunks) == KEEP_ALIVE
        for paused in (halved, text, between):
            paused.released.set()
        assert await anext(within_chunks) == b"lf\n\n"
        assert await anext(plain_chunks) == b"two"
