"""Sandboxes made ahead: for each version that is in use a few that are started, each with the id of a session to come.

They stand still until they are claimed. How many there are follows from how many were wanted lately; they are made one
after another, when nothing that somebody waits for is being started, and they are the first to go when room is needed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cupola.domain.ids import new_session_id
from cupola.domain.version import Version
from cupola.images.store import ImageStore
from cupola.sessions.launcher import Launcher, RunningAgent, SandboxSession, StartFailed
from cupola.storage.sessions import new_session_guid
from cupola.telemetry.output import SessionLog

logger = logging.getLogger(__name__)

DEMAND_WINDOW = 10.0
"""Seconds back over which sandboxes that were wanted are counted; about what it takes to make some anew."""
FORGET_AFTER = 600.0
"""Seconds without a new session after which nothing is made ahead for a version any more."""
MAXIMUM_AGE = 1800.0
"""Seconds after which a sandbox that nobody claimed is replaced, so that nothing in it goes stale."""
REFILL_INTERVAL = 1.0
RETRY_AFTER = 30.0
"""Seconds after a failed start before the next one for the same version."""


@dataclass(eq=False)
class Prepared:
    """A running sandbox for a session that does not exist yet."""

    version: Version
    session_id: str
    guid: str
    log: SessionLog
    agent: RunningAgent
    made_at: float


@dataclass(eq=False)
class _Demand:
    """What is known of one version."""

    version: Version
    wanted_at: deque[float] = field(default_factory=deque)
    last_wanted: float = -math.inf
    retry_at: float = -math.inf
    ready: list[Prepared] = field(default_factory=list)

    def note(self, now: float) -> None:
        self.wanted_at.append(now)
        self.last_wanted = now

    def size(self, now: float, most: int) -> int:
        """How many should be ready."""
        while self.wanted_at and now - self.wanted_at[0] > DEMAND_WINDOW:
            self.wanted_at.popleft()
        if now - self.last_wanted > FORGET_AFTER:
            return 0
        return min(most, max(1, len(self.wanted_at)))


class WarmPool:
    """The sandboxes made ahead. `size` is the most per version; 0 switches it off. `directory` is that of sessions."""

    def __init__(
        self,
        launcher: Launcher,
        images: ImageStore,
        directory: Path,
        size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._images = images
        self._directory = directory
        self._size = size
        self._clock = clock
        self._demands: dict[int, _Demand] = {}
        self._wake = asyncio.Event()
        self._making: tuple[int, asyncio.Task[None]] | None = None
        self._group: asyncio.TaskGroup | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Make and discard sandboxes until `stopping` is set; then remove them all."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            ending = group.create_task(stopping.wait(), name="the pool's end")
            while not stopping.is_set():
                await self._refill(group)
                self._wake.clear()
                waking = group.create_task(self._wake.wait(), name="the pool's work")
                await asyncio.wait({waking, ending}, timeout=REFILL_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
            self._group = None
            await self._stop_making()
            for demand in self._demands.values():
                for prepared in demand.ready:
                    group.create_task(self._remove(prepared))
            self._demands.clear()

    def __len__(self) -> int:
        return sum(len(demand.ready) for demand in self._demands.values())

    def expect(self, version: Version) -> None:
        """A version has become active: the next new session is likely to be on it, and not on an older one."""
        for demand in list(self._demands.values()):
            if demand.version.agent.key == version.agent.key:
                self.forget(demand.version.key)
        self._want(version)

    def claim(self, version: Version) -> Prepared | None:
        """A sandbox for a new session of a version, if one is ready."""
        demand = self._want(version)
        if demand is None:
            return None
        while demand.ready:
            prepared = demand.ready.pop(0)
            if not prepared.agent.sandbox.exited.done():
                self._launcher.driver.thaw(prepared.agent.sandbox.name)
                return prepared
            self.discard(prepared)
        return None

    def forget(self, version_key: int) -> None:
        """What was made ahead for a version is out of date: remove it, and make no more until it is wanted again."""
        demand = self._demands.pop(version_key, None)
        if demand is not None:
            for prepared in demand.ready:
                self.discard(prepared)
        if self._making is not None and self._making[0] == version_key:
            self._making[1].cancel()

    def forget_all(self) -> None:
        """Remove everything that was made ahead."""
        for key in list(self._demands):
            self.forget(key)

    def give_up_one(self) -> bool:
        """Remove the sandbox that is needed least; False when there is none."""
        full = [demand for demand in self._demands.values() if demand.ready]
        if not full:
            return False
        least = min(full, key=lambda demand: demand.last_wanted)
        # Not made again at once: room was just needed for something else.
        least.retry_at = self._clock() + RETRY_AFTER
        self.discard(least.ready.pop(0))
        return True

    def discard(self, prepared: Prepared) -> None:
        """Remove a sandbox that will not be used, in the background."""
        if self._group is not None:
            self._group.create_task(self._remove(prepared), name=f"discard {prepared.session_id}")

    async def drained(self, version_key: int) -> None:
        """Returns when nothing of a version is being made."""
        self.forget(version_key)
        if self._making is not None and self._making[0] == version_key:
            await asyncio.wait([self._making[1]])

    def _want(self, version: Version) -> _Demand | None:
        if not self._size or self._group is None:
            return None
        demand = self._demands.get(version.key)
        if demand is None:
            demand = self._demands[version.key] = _Demand(version)
        demand.note(self._clock())
        self._wake.set()
        return demand

    async def _refill(self, group: asyncio.TaskGroup) -> None:
        now = self._clock()
        for key, demand in list(self._demands.items()):
            wanted = demand.size(now, self._size)
            for prepared in list(demand.ready):
                stale = now - prepared.made_at > MAXIMUM_AGE or prepared.agent.sandbox.exited.done()
                if stale or len(demand.ready) > wanted:
                    demand.ready.remove(prepared)
                    self.discard(prepared)
            if wanted == 0 and not demand.ready:
                del self._demands[key]
        if self._making is None and not self._launcher.starting:
            lacking = [
                demand
                for demand in self._demands.values()
                if demand.retry_at <= now and len(demand.ready) < demand.size(now, self._size)
            ]
            if lacking:
                # Who has the fewest goes first.
                demand = min(lacking, key=lambda demand: len(demand.ready))
                task = group.create_task(self._make(demand), name=f"make ahead {demand.version.name}")
                self._making = (demand.version.key, task)
                task.add_done_callback(lambda _: self._made())

    def _made(self) -> None:
        self._making = None
        self._wake.set()

    async def _stop_making(self) -> None:
        if self._making is not None:
            task = self._making[1]
            task.cancel()
            await asyncio.wait([task])

    async def _make(self, demand: _Demand) -> None:
        try:
            prepared = await self._prepare(demand.version)
        except StartFailed as error:
            logger.warning("no sandbox could be made ahead for %s: %s", demand.version.name, error.message)
        except Exception:
            logger.exception("no sandbox could be made ahead for %s", demand.version.name)
        else:
            if prepared is not None and self._demands.get(demand.version.key) is demand:
                demand.ready.append(prepared)
                return
            if prepared is not None:
                await self._remove(prepared)
        demand.retry_at = self._clock() + RETRY_AFTER

    async def _prepare(self, version: Version) -> Prepared | None:
        image = await self._images.load(version.digest or "")
        place = self._launcher.admission.try_take(version.definition.memory_bytes)
        if image is None or place is None:
            if place is not None:
                place.give_back()
            return None
        session_id, guid = new_session_id(), new_session_guid()
        directory = self._directory / guid
        log = SessionLog(directory / "logs")
        log.status(f"Starting the sandbox on version {version.number}, ahead of its session.")
        try:
            session = SandboxSession(session_id, guid, directory)
            agent = await self._launcher.launch(version, image, session, log, place)
        except BaseException:
            log.close()
            await asyncio.to_thread(shutil.rmtree, directory, True)
            raise
        agent.kind = "started"
        log.status(agent.describe())
        prepared = Prepared(version, session_id, guid, log, agent, self._clock())
        try:
            await self._launcher.driver.freeze(agent.sandbox.name)
        except BaseException:
            await self._remove(prepared)
            raise
        return prepared

    async def _remove(self, prepared: Prepared) -> None:
        await self._launcher.stop(prepared.agent, 0)
        prepared.log.close()
        await asyncio.to_thread(shutil.rmtree, self._directory / prepared.guid, True)
