"""The events of one response, as server-sent events, for whoever reads them: once, again, or as they come.

Its writer never waits. A reader takes everything that is there in one piece, so a burst leaves in one write and a
lone event leaves at once.
"""

import asyncio
from collections import deque
from itertools import islice

from cupola_agent.exchange import Exchange

_KEEP_ALIVE = b": keep-alive\n\n"
_DATA = b"\ndata: "
_MAX_BACKLOG = 1024 * 1024

_heads: dict[str, bytes] = {}


class EventLog:
    """Events in order; the number of the first is `first_number`.

    Reading does not remove them: `forget` does, where nobody will read them again.
    """

    def __init__(self, first_number: int = 0) -> None:
        self._first = first_number
        self._frames: deque[bytes] = deque()
        self._readers: list[asyncio.Future[None]] = []
        self._writer: asyncio.Future[None] | None = None
        self.size = 0
        self.closed = False

    @property
    def end(self) -> int:
        """The number the next event will have."""
        return self._first + len(self._frames)

    def append(self, kind: str, data: bytes) -> None:
        """Adds an event, of which `data` is the JSON."""
        self.add_frame(event_frame(kind, data))

    def add_frame(self, frame: bytes) -> None:
        """Adds an event as it was read from another log."""
        self._frames.append(frame)
        self.size += len(frame)
        if self._readers:
            self._wake()

    async def written(self) -> None:
        """Waits until every event is where readers find it."""

    def close(self) -> None:
        """No event comes any more."""
        self.closed = True
        self._wake()

    def read(self, number: int) -> list[bytes]:
        """The events from this number on that are there."""
        skip = max(0, number - self._first)
        return list(islice(self._frames, skip, None)) if skip else list(self._frames)

    def forget(self, number: int) -> None:
        """Drops the events before this number."""
        while self._first < number and self._frames:
            self.size -= len(self._frames.popleft())
            self._first += 1
        if self._writer is not None and not self.crowded:
            _end_wait(self._writer)
            self._writer = None

    @property
    def crowded(self) -> bool:
        """Whether more waits to be read than its writer should add to, where its only reader forgets what it sent."""
        return self.size > _MAX_BACKLOG

    async def room(self) -> None:
        """Waits until it is not crowded any more."""
        if self.crowded and not self.closed:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer

    async def more(self, number: int, timeout: float | None) -> bool:
        """Waits until there is an event of this number, or none will come. False after `timeout` seconds."""
        if self.end > number or self.closed:
            return True
        loop = asyncio.get_running_loop()
        reader = loop.create_future()
        self._readers.append(reader)
        timer = loop.call_later(timeout, _end_wait, reader) if timeout else None
        try:
            await reader
        finally:
            if timer is not None:
                timer.cancel()
            if reader in self._readers:
                self._readers.remove(reader)
        return self.end > number or self.closed

    def _wake(self) -> None:
        readers, self._readers = self._readers, []
        for reader in readers:
            _end_wait(reader)


def _end_wait(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def event_frame(kind: str, data: bytes) -> bytes:
    """The server-sent event of this type with this JSON."""
    head = _heads.get(kind)
    if head is None:
        head = b"event: " + kind.encode() + _DATA
        if len(_heads) < 256:  # a handler may invent types
            _heads[kind] = head
    return b"%b%b\n\n" % (head, data)


def event_data(frame: bytes) -> bytes:
    """The JSON of a server-sent event."""
    return frame[frame.index(_DATA) + len(_DATA) : -2]


async def send_events(
    exchange: Exchange, log: EventLog, number: int, *, keep_alive: float | None, only_reader: bool
) -> None:
    """Streams the events from this number on to a client until the last one.

    `keep_alive` is the longest silence in seconds. The only reader of a log forgets what it has sent. Raises
    ClientDisconnectedError.
    """
    while True:
        frames = log.read(number)
        if frames:
            exchange.write(b"".join(frames))
            number += len(frames)
            if only_reader:
                log.forget(number)
        await exchange.drained()
        if number < log.end:
            continue
        if log.closed:
            exchange.finish()
            return
        if not await log.more(number, keep_alive):
            exchange.write(_KEEP_ALIVE)
