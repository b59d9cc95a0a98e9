"""A sandbox's standard streams: output is read at the pace that the platform can bear, so that a flood waits in its pipe."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from time import perf_counter, thread_time

from cupola.sandbox.base import Output, Stream

FIRST_READ, LEAST_READ = 4096, 512
"""Bytes taken at once. Lines cost more than bytes: this many empty ones take about as long as 64 KiB of long ones."""
READ_TIME = 0.0003
"""Seconds for which output may keep the event loop at a time: what takes less is taken in larger pieces, and the other way."""
CAPACITY = 64 * 1024
"""Bytes a pipe holds as the kernel makes it."""


class OutputBudget:
    """Bounds the share of the event loop's time that goes into taking output, that of all sandboxes together."""

    SHARE = 0.2
    BURST = 0.1
    """Seconds by which output may be ahead of its share, so that ordinary output is never held up."""

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._paid_until = 0.0

    def spend(self, seconds: float) -> float:
        """Account for work that took `seconds`; returns for how long its cause should pause."""
        now = self._clock()
        self._paid_until = max(self._paid_until, now) + seconds / self.SHARE
        return max(0.0, self._paid_until - now - self.BURST)


class HeldPipes:
    """Given to a driver in place of an output: pipes are not read but kept, for somebody else to read. What the platform
    has to say, and what a driver has without a pipe, goes to `output`."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.read_ends: dict[Stream, int] = {}
        """Owned by whoever takes them."""

    def __call__(self, stream: Stream, data: bytes) -> None:
        self._output(stream, data)

    def close(self) -> None:
        """Close the pipes that nobody has taken."""
        while self.read_ends:
            os.close(self.read_ends.popitem()[1])


def open_pipe() -> tuple[int, int]:
    """The read end of a pipe, which does not block, and the write end. The sandbox must see an ordinary pipe, which blocks."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(write_end, True)
    return read_end, write_end


class OutputPipe:
    """One output stream of a sandbox, read by the event loop until every writer has closed it. Owns the read end."""

    def __init__(self, stream: Stream, read_end: int, output: Output, budget: OutputBudget) -> None:
        self._stream = stream
        self._read_end = read_end
        self._output = output
        self._budget = budget
        self._open = True
        self._pause: asyncio.TimerHandle | None = None
        self._size = FIRST_READ
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._read_end, self._on_readable)

    def _on_readable(self) -> None:
        # Not by the clock on the wall: on a busy machine others' time would count as well.
        began = thread_time()
        taken = self._read()
        took = thread_time() - began
        if took > READ_TIME:
            self._size = max(LEAST_READ, self._size // 2)
        elif taken == self._size:
            self._size = min(CAPACITY, self._size * 2)
        pause = self._budget.spend(took)
        if pause > 0 and self._open:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._read_end)
            self._pause = loop.call_later(pause, self._listen)

    def _read(self) -> int:
        """Take one piece; returns its length, 0 when there is nothing."""
        try:
            data = os.read(self._read_end, self._size)
        except BlockingIOError:
            return 0
        if data:
            self._output(self._stream, data)
        else:
            self._close()
        return len(data)

    def _close(self) -> None:
        if self._open:
            self._open = False
            if self._pause is not None:
                self._pause.cancel()
            asyncio.get_running_loop().remove_reader(self._read_end)
            os.close(self._read_end)

    def finish(self) -> None:
        """Take what is still in the pipe, at most its capacity, and close it."""
        left = CAPACITY
        while self._open and left > 0 and (length := self._read()):
            left -= length
        self._close()


def open_standard_input(channel: bool) -> tuple[socket.socket | None, int]:
    """The platform's end of a sandbox's standard input, and the descriptor that the sandbox gets."""
    if not channel:
        return None, os.open(os.devnull, os.O_RDONLY)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs.detach()
