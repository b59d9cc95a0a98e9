"""What the agents of the benchmark say: the same on each library, told by the input."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

LONE_WAIT = 0.02
"""Seconds before a lone event."""


async def words(input: str) -> AsyncIterator[str]:  # noqa: A002
    """The pieces of the answer to an input.

    * `deltas N`: N words, as fast as they are taken.
    * `lone N`: N times a wait, then the time of the monotonic clock in nanoseconds.
    * anything else: the input.
    """
    match input.split():
        case ["deltas", count]:
            for number in range(int(count)):
                yield f"word{number} "
        case ["lone", count]:
            for _ in range(int(count)):
                await asyncio.sleep(LONE_WAIT)
                yield f"{time.monotonic_ns()} "
        case _:
            yield input
