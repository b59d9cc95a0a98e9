"""Sends what a handler of invocations yields, and keeps event streams alive while it is silent (contract section 5.1)."""

import asyncio
from contextlib import aclosing
from time import monotonic

from cupola_agent.http import Call, Header
from cupola_agent.invocations.results import BYTES, TEXT, Streamed, piece_bytes

_KEEP_ALIVE = b": keep-alive\n\n"
_ENDS_OF_EVENTS = (b"\n\n", b"\n\r\n", b"\r\r")
_LONGEST_END = 3
_SLICE = 0.0005
"""Seconds for which a handler that never waits may keep the loop for itself."""


async def send_stream(call: Call, streamed: Streamed, headers: tuple[Header, ...], keep_alive: float) -> None:
    """Sends all pieces. Raises what the handler raises, whether the answer has begun by then or not.

    After `keep_alive` seconds without a byte an event stream gets a comment; 0 for none.
    """
    sender = _Sender(call, streamed, headers)
    exchange = call.exchange
    if keep_alive and streamed.of_events:
        sender.keep_alive(keep_alive)
    try:
        slice_end = monotonic() + _SLICE
        async with aclosing(streamed.pieces) as pieces:
            async for piece in pieces:
                sender.start(TEXT if isinstance(piece, str) else BYTES)
                sender.write(piece_bytes(piece))
                await exchange.drained()
                if monotonic() > slice_end:
                    await asyncio.sleep(0)
                    slice_end = monotonic() + _SLICE
        sender.start(BYTES)
        exchange.finish()
    finally:
        sender.stop()


class _Sender:
    """Writes one answer, which begins with its first piece: until then, a failure can be told as one."""

    def __init__(self, call: Call, streamed: Streamed, headers: tuple[Header, ...]) -> None:
        self._call = call
        self._streamed = streamed
        self._headers = headers
        self._timer: asyncio.TimerHandle | None = None
        self._written_at = monotonic()
        self._tail = b"\n\n"

    def start(self, usual_type: bytes) -> None:
        if not self._call.exchange.answered:
            media_type = self._streamed.media_type or usual_type
            fields = (*self._streamed.headers, *self._headers)
            self._call.start(self._streamed.status, (b"content-type", media_type), *fields)

    def write(self, data: bytes) -> None:
        if data:
            self._call.exchange.write(data)
            self._written_at = monotonic()
            self._tail = (self._tail + data[-_LONGEST_END:])[-_LONGEST_END:]

    def keep_alive(self, seconds: float) -> None:
        """From now on, fills the silences between events."""
        silence = monotonic() - self._written_at
        if silence >= seconds:
            if self._tail.endswith(_ENDS_OF_EVENTS):
                self.start(BYTES)
                self.write(_KEEP_ALIVE)
            silence = 0.0
        self._timer = asyncio.get_running_loop().call_later(seconds - silence, self.keep_alive, seconds)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
