"""Calls what the developer registered: plain and async functions, plain and async generators."""

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, TypeVar

from cupola_agent import threads

T = TypeVar("T")

# How many pieces a plain generator may be ahead of the client that reads them.
_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Handler:
    """A registered function and the names of the arguments it takes."""

    function: Callable[..., Any]
    names: tuple[str, ...]
    blocks: bool
    streams: bool = False
    """Whether calling it is known to give an async generator, and nothing else."""

    @classmethod
    def of(cls, function: Callable[..., Any], allowed: tuple[str, ...]) -> "Handler":
        """Raises TypeError when the function asks for a name that is not allowed."""
        parameters = inspect.signature(function).parameters.values()
        for parameter in parameters:
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if not named or parameter.name not in allowed:
                raise TypeError(
                    f"handler {_name(function)} asks for '{parameter}', "
                    f"but a handler takes only parameters named {', '.join(allowed)}"
                )
        names = tuple(parameter.name for parameter in parameters)
        return cls(function, names, _blocks(function), inspect.isasyncgenfunction(function))

    async def call(self, arguments: Mapping[str, Any]) -> Any:
        """The value the handler gives, or an async generator of its pieces. `arguments` has one for each name."""
        if self.streams:
            return self.function(**arguments)
        if self.blocks:
            result = await in_thread(lambda: self.function(**arguments))
        else:
            result = self.function(**arguments)
        if inspect.isawaitable(result):
            result = await result
        return as_pieces(result) if is_stream(result) else result


def is_stream(value: Any) -> bool:
    return isinstance(value, AsyncIterator | Iterator)


def as_pieces(stream: Any) -> AsyncGenerator[Any, None]:
    """An async generator over a stream; closing it closes the stream."""
    if isinstance(stream, AsyncGenerator):
        return stream
    return iterate_in_thread(stream) if isinstance(stream, Iterator) else iterate(stream)


async def iterate(stream: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    try:
        async for piece in stream:
            yield piece
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


async def in_thread(function: Callable[[], T]) -> T:
    """Runs a blocking function in a thread that it has to itself.

    Not in the loop's pool: that one has few threads, a handler may wait minutes for a model, and the
    interpreter joins pool threads at exit, which would hold up a shutdown. A cancelled caller leaves the
    thread to its end and drops the result.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    context = copy_context()

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def succeed(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def work() -> None:
        try:
            result = context.run(function)
        except StopIteration as error:
            # A future refuses this one, as it would end a coroutine instead of failing it.
            _tell(loop, fail, RuntimeError(f"the handler raised {error!r}"))
        except BaseException as error:
            _tell(loop, fail, error)
        else:
            _tell(loop, succeed, result)

    threads.start(work)
    return await future


async def iterate_in_thread(stream: Iterator[T]) -> AsyncGenerator[T, None]:
    """Runs a blocking iterator in one thread of its own, at most a few pieces ahead of the reader.

    When the reader leaves, a generator gets its GeneratorExit at the next piece it yields.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[T | _End] = asyncio.Queue()
    room = threading.Semaphore(_AHEAD)
    left = threading.Event()

    def produce() -> None:
        try:
            for piece in stream:
                _tell(loop, pieces.put_nowait, piece)
                room.acquire()
                if left.is_set():
                    break
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()

    def end(producer: asyncio.Task[None]) -> None:
        pieces.put_nowait(_End(None if producer.cancelled() else producer.exception()))

    producer = asyncio.create_task(in_thread(produce))
    producer.add_done_callback(end)
    try:
        while not isinstance(piece := await pieces.get(), _End):
            yield piece
            room.release()
        if piece.error is not None:
            raise piece.error
    finally:
        left.set()
        room.release()
        producer.cancel()


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> None:
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise
        # The process is going down: nobody waits for this any more.


def is_async(function: Callable[..., Any]) -> bool:
    """Whether it is a coroutine function or an async generator function, or wraps one."""
    return any(
        check(candidate)
        for check in (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        for candidate in _candidates(function)
    )


def _blocks(function: Callable[..., Any]) -> bool:
    """False when calling the function only makes a coroutine or a generator."""
    return not (is_async(function) or any(inspect.isgeneratorfunction(inner) for inner in _candidates(function)))


def _candidates(function: Callable[..., Any]) -> tuple[Any, ...]:
    """What tells the kind of a function: itself, or what a functools.partial or an object with `__call__` wraps."""
    inner = inspect.unwrap(getattr(function, "func", function))
    return inner, getattr(inner, "__call__", None)  # noqa: B004


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))
