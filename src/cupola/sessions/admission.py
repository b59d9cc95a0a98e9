"""How many sandboxes may exist at once, and who waits for a place.

A place costs one of the count and a definition's memory limit. When there is none, room is made first (whoever was given as
`make_room` ends something less needed); then callers take turns: each caller has a queue of its own, and the queues are
served in rotation, so a caller that asks for a hundred does not keep another one waiting for a hundred.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from cupola.domain.errors import CupolaError

RETRY_AFTER = 5
"""Seconds that a refused caller is asked to wait."""


@dataclass(frozen=True)
class Limits:
    """The most sandboxes, their memory together in bytes, how many may wait and for how many seconds. 0 sandboxes or
    bytes mean no limit."""

    sandboxes: int = 0
    memory: int = 0
    queue: int = 100
    deadline: float = 30.0


@dataclass(eq=False)
class Place:
    """A right to have one sandbox."""

    memory: int
    _admission: Admission
    _returned: bool = False

    def give_back(self) -> None:
        """The sandbox is gone. Giving back twice is fine."""
        if not self._returned:
            self._returned = True
            self._admission.take_back(self)


class Admission:
    """Hands out places. For one event loop."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.make_room: Callable[[], None] = lambda: None
        """Begins to end as many less needed sandboxes as are waited for, if there are any; their places come back later."""
        self.count = 0
        self.memory = 0
        self._queues: OrderedDict[str, deque[tuple[int, asyncio.Future[Place]]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(len(queue) for queue in self._queues.values())

    def try_take(self, memory: int) -> Place | None:
        """A place if one is free and nobody waits for it."""
        if self._queues or not self._fits(memory):
            return None
        return self._hand_out(memory)

    async def take(self, memory: int, caller: str, *, patient: bool = False) -> Place:
        """A place, after a wait if need be. Raises CupolaError (429) when too many wait or it takes too long, neither of
        which turns a patient caller away."""
        if (place := self.try_take(memory)) is not None:
            return place
        if self.limits.memory and memory > self.limits.memory:
            raise CupolaError(
                "sandbox_too_large",
                f"The version needs {memory} bytes of memory, more than all sandboxes of this server may have together "
                f"(setting max_sandbox_memory: {self.limits.memory}).",
            )
        if self.waiting >= self.limits.queue and not patient:
            raise self._full("too many requests wait for a sandbox")
        waiter: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, deque()).append((memory, waiter))
        self.make_room()
        try:
            async with asyncio.timeout(None if patient else self.limits.deadline):
                return await waiter
        except BaseException as error:
            self._drop(caller, waiter)
            if isinstance(error, TimeoutError):
                raise self._full(f"no sandbox became free within {self.limits.deadline:g} s") from None
            raise

    def take_back(self, place: Place) -> None:
        """For `Place.give_back`."""
        self.count -= 1
        self.memory -= place.memory
        self._serve()

    def _fits(self, memory: int) -> bool:
        limits = self.limits
        return (not limits.sandboxes or self.count < limits.sandboxes) and (
            not limits.memory or self.memory + memory <= limits.memory
        )

    def _hand_out(self, memory: int) -> Place:
        self.count += 1
        self.memory += memory
        return Place(memory, self)

    def _serve(self) -> None:
        while self._queues:
            caller, queue = next(iter(self._queues.items()))
            memory, waiter = queue[0]
            if not self._fits(memory):
                # Whoever is next waits for enough room, or small ones would keep a large one waiting for ever.
                self.make_room()
                return
            queue.popleft()
            self._queues.move_to_end(caller)
            if not queue:
                del self._queues[caller]
            if not waiter.done():
                waiter.set_result(self._hand_out(memory))

    def _drop(self, caller: str, waiter: asyncio.Future[Place]) -> None:
        queue = self._queues.get(caller)
        if queue is not None:
            self._queues[caller] = deque(entry for entry in queue if entry[1] is not waiter)
            if not self._queues[caller]:
                del self._queues[caller]
        if waiter.done() and not waiter.cancelled():
            # It got its place in the very moment in which it left.
            waiter.result().give_back()
        else:
            # It may have been the one that all others waited behind.
            self._serve()

    def _full(self, reason: str) -> CupolaError:
        return CupolaError(
            "too_many_sandboxes",
            f"The server has no room for another sandbox: {reason}. Try again, stop sessions, or raise max_sandboxes or "
            "max_sandbox_memory.",
            status=429,
            retry_after=RETRY_AFTER,
        )
