"""How often something may happen: so many times at once, and then at a rate."""

from __future__ import annotations

import time
from collections.abc import Callable


class Allowance:
    """Begins with `burst`, and grows by `rate` each second up to it."""

    def __init__(self, burst: int, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = float(burst)
        self._rate = rate
        self._clock = clock
        self._left = float(burst)
        self._at = clock()

    def take(self) -> bool:
        """Use one up; False when there is none."""
        if self.missing() > 0:
            return False
        self._left -= 1
        return True

    def missing(self) -> float:
        """Seconds until there is one."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (1 - self._left) / self._rate)
