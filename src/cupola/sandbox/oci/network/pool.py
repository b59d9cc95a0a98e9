"""Network namespaces made ahead: a sandbox takes one that is ready, and the next is made after it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

SIZE = 4

Made = TypeVar("Made")


class Pool(Generic[Made]):
    """Keeps a few of what `make` makes, from the first one that is asked for on. `discard` is for what nobody took."""

    def __init__(self, make: Callable[[], Awaitable[Made]], discard: Callable[[Made], Awaitable[None]]) -> None:
        self._make = make
        self._discard = discard
        self._ready: deque[Made] = deque()
        self._filling: asyncio.Task[None] | None = None
        self._closing = False

    async def take(self) -> Made:
        """One that is ready, or a new one. Raises what `make` does."""
        taken = self._ready.popleft() if self._ready else await self._make()
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill(), name="prepare networks")
        return taken

    async def _fill(self) -> None:
        try:
            while len(self._ready) < SIZE and not self._closing:
                self._ready.append(await self._make())
        except Exception as error:
            # Whoever needs one makes it, and hears of it if that fails too.
            logger.warning("networks could not be prepared ahead: %s", error)

    async def close(self) -> None:
        """Stop making, and discard what is left."""
        self._closing = True
        if self._filling is not None:
            await self._filling
        while self._ready:
            await self._discard(self._ready.popleft())
