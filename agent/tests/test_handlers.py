import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from cupola_agent.handlers import Handler, is_stream, iterate_in_thread


async def outcome(function: Callable[..., Any]) -> Any:
    handler = Handler.of(function, ("word",))
    result = await handler.call(dict.fromkeys(handler.names, "hi"))
    return [piece async for piece in result] if is_stream(result) else result


def plain(word: str) -> str:
    return f"{word} {threading.current_thread() is threading.main_thread()}"


async def coroutine(word: str) -> str:
    return f"{word} {threading.current_thread() is threading.main_thread()}"


def generator(word: str) -> Iterator[str]:
    yield word
    yield str(threading.current_thread() is threading.main_thread())


async def async_generator(word: str) -> AsyncIterator[str]:
    yield word
    yield str(threading.current_thread() is threading.main_thread())


async def coroutine_that_gives_a_generator(word: str) -> AsyncIterator[str]:
    return async_generator(word)


class Callee:
    async def __call__(self, word: str) -> str:
        return await coroutine(word)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (plain, "hi False"),
        (coroutine, "hi True"),
        (generator, ["hi", "False"]),
        (async_generator, ["hi", "True"]),
        (coroutine_that_gives_a_generator, ["hi", "True"]),
        (Callee(), "hi True"),
        (functools.partial(coroutine), "hi True"),
        (lambda word: async_generator(word), ["hi", "True"]),
        (lambda: "nothing asked", "nothing asked"),
    ],
)
async def test_every_kind_of_function_is_called_where_it_belongs(function: Callable[..., Any], expected: Any) -> None:
    assert await outcome(function) == expected


@pytest.mark.parametrize(
    "function",
    [lambda words: words, lambda *word: word, lambda **word: word, lambda word, other=1: word],
    ids=["unknown", "positional", "keywords", "unknown-with-default"],
)
def test_a_parameter_that_is_not_offered_is_refused_at_registration(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="takes only parameters named word, request"):
        Handler.of(function, ("word", "request"))


async def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def fails() -> str:
        raise LookupError("lost")

    def stops() -> str:
        raise StopIteration

    with pytest.raises(LookupError, match="lost"):
        await outcome(fails)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await outcome(stops)


async def test_an_error_of_a_generator_comes_after_its_pieces() -> None:
    def fails() -> Iterator[str]:
        yield "one"
        raise LookupError("lost")

    pieces = iterate_in_thread(fails())
    assert await anext(pieces) == "one"
    with pytest.raises(LookupError, match="lost"):
        await anext(pieces)


async def test_a_generator_whose_reader_leaves_is_closed_and_never_far_ahead() -> None:
    made = 0
    closed = threading.Event()

    def endless() -> Iterator[int]:
        nonlocal made
        try:
            while True:
                made += 1
                yield made
        finally:
            closed.set()

    async with aclosing(iterate_in_thread(endless())) as pieces:
        assert await anext(pieces) == 1
        await asyncio.sleep(0.02)
    assert await asyncio.to_thread(closed.wait, 1)
    assert made < 30


async def test_many_plain_handlers_run_at_once() -> None:
    together = threading.Barrier(40)

    def waits() -> int:
        return together.wait(5)

    results = await asyncio.gather(*(outcome(waits) for _ in range(40)))
    assert sorted(results) == list(range(40))
