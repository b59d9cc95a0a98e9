"""What a sandbox was refused, told to its session's log in few lines, however often it tries."""

from __future__ import annotations

import time
from collections.abc import Callable

from cupola.sandbox.oci.network.allowance import Allowance

BURST = 20
SECONDS_PER_LINE = 5.0
REPEAT_AFTER = 60.0
"""Seconds after which the same subject is worth another line."""
MOST_REMEMBERED = 256


class Refusals:
    """Hands lines to `report`: each subject once a minute, and no more than a few in all."""

    def __init__(self, report: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._told: dict[str, float] = {}
        self._allowance = Allowance(BURST, 1 / SECONDS_PER_LINE, clock)
        self._untold = 0

    def note(self, subject: str, text: str) -> None:
        """Tell that something was refused, or count it where that would be too much."""
        now = self._clock()
        if now - self._told.get(subject, -REPEAT_AFTER) < REPEAT_AFTER:
            return
        if not self._allowance.take():
            self._untold += 1
            return
        if len(self._told) >= MOST_REMEMBERED:
            self._told.clear()
        self._told[subject] = now
        more = f" Before that, {_many(self._untold)} not told." if self._untold else ""
        self._untold = 0
        self._report(text + more)


def _many(count: int) -> str:
    return "1 refusal was" if count == 1 else f"{count} refusals were"
