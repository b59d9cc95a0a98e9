"""Events that may be read again for a while after their response has ended (contract section 4.8)."""

from collections import OrderedDict
from collections.abc import Callable

from cupola_agent.responses.log import EventLog

SECONDS = 600.0
MAX_BYTES = 64 * 1024 * 1024


class Replays:
    """The logs of ended responses, oldest first: for ten minutes, and no more than 64 MiB of them."""

    def __init__(self, clock: Callable[[], float], seconds: float = SECONDS, max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._bytes = 0
        self._logs: OrderedDict[str, tuple[float, EventLog]] = OrderedDict()

    def add(self, response_id: str, log: EventLog) -> None:
        self.drop(response_id)
        self._logs[response_id] = (self._clock() + self._seconds, log)
        self._bytes += log.size
        self._expire()

    def get(self, response_id: str) -> EventLog | None:
        self._expire()
        entry = self._logs.get(response_id)
        return None if entry is None else entry[1]

    def drop(self, response_id: str) -> None:
        entry = self._logs.pop(response_id, None)
        if entry is not None:
            self._bytes -= entry[1].size

    def _expire(self) -> None:
        now = self._clock()
        while self._logs:
            response_id, (expires, _) = next(iter(self._logs.items()))
            if expires > now and self._bytes <= self._max_bytes:
                return
            self.drop(response_id)
