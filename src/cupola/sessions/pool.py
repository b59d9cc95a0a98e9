"""Sandboxes made ahead, for each version that is in use a few of two kinds.

*Started* ones run with the id of a session to come, for sessions whose id the platform makes. *Primed* ones have an
interpreter that waits for any session. How many there are follows from how many were wanted lately; they are made one after
another, when nothing that somebody waits for is being started, and they are the first to go when room is needed. Started ones
stand still until they are claimed.
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
from cupola.images.model import Image, Images
from cupola.sessions.admission import Place
from cupola.sessions.launcher import Launcher, RunningAgent, SandboxSession, StartFailed
from cupola.sessions.primer import PrimedSandbox, Primer
from cupola.sessions.priming.client import PrimingFailed
from cupola.sessions.priming.entry_point import NotPrimable
from cupola.sessions.priming.plan import Plan
from cupola.sessions.volumes import Volumes
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
class StartedSandbox:
    """A running sandbox for a session that does not exist yet."""

    version: Version
    session: SandboxSession
    log: SessionLog
    agent: RunningAgent


Pooled = StartedSandbox | PrimedSandbox


@dataclass(eq=False)
class _Shelf:
    """The sandboxes of one kind and version: when some were wanted, and those that are ready with the times they were made."""

    wanted_at: deque[float] = field(default_factory=deque)
    last_wanted: float = -math.inf
    retry_at: float = -math.inf
    ready: list[tuple[Pooled, float]] = field(default_factory=list)

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

    def lacks(self, now: float, most: int) -> bool:
        return self.retry_at <= now and len(self.ready) < self.size(now, most)


class _Demand:
    """What is wanted of one version."""

    def __init__(self, version: Version) -> None:
        self.version = version
        self.started = _Shelf()
        self.primed = _Shelf()
        self.plan: Plan | None = None
        self.plan_is_known = False

    @property
    def shelves(self) -> tuple[_Shelf, ...]:
        # Without a plan there are no interpreters to make ready.
        return (self.started,) if self.plan_is_known and self.plan is None else (self.started, self.primed)

    @property
    def last_wanted(self) -> float:
        return max(self.started.last_wanted, self.primed.last_wanted)


class WarmPool:
    """The sandboxes made ahead: at most `size` per version and kind. `volumes` and `logs` are those of sessions."""

    def __init__(
        self,
        launcher: Launcher,
        primer: Primer,
        images: Images,
        volumes: Volumes,
        logs: Path,
        size: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._primer = primer
        self._images = images
        self._volumes = volumes
        self._logs = logs
        self._size = size
        self._clock = clock
        self._demands: dict[int, _Demand] = {}
        self._wake = asyncio.Event()
        launcher.idle = self._wake.set
        self._making: tuple[int, asyncio.Task[None]] | None = None
        self._group: asyncio.TaskGroup | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Make and discard sandboxes until `stopping` is set; then remove them all."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            ending = group.create_task(stopping.wait(), name="the pool's end")
            while not stopping.is_set():
                self._tidy()
                self._refill(group)
                self._wake.clear()
                waking = group.create_task(self._wake.wait(), name="the pool's work")
                await asyncio.wait({waking, ending}, timeout=REFILL_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
            self.forget_all()
            self._group = None
            if self._making is not None:
                await asyncio.wait([self._making[1]])

    def counts(self) -> tuple[int, int]:
        """How many are ready: started ones, and primed ones."""
        demands = self._demands.values()
        return sum(len(demand.started.ready) for demand in demands), sum(len(demand.primed.ready) for demand in demands)

    def expect(self, version: Version) -> None:
        """A version has become active: the next new session is likely to be on it, and not on an older one."""
        for demand in list(self._demands.values()):
            if demand.version.agent.key == version.agent.key:
                self.forget(demand.version.key)
        self._want(version)

    def renew(self, project: str) -> None:
        """What was made ahead for a project's agents, or just is, is out of date: replace it."""
        for demand in list(self._demands.values()):
            if demand.version.agent.project == project:
                self.forget(demand.version.key)
                self._want(demand.version)

    def _want(self, version: Version) -> None:
        wanted = self._demand(version)
        if wanted is not None:
            for shelf in wanted.shelves:
                shelf.note(self._clock())

    def claim_started(self, version: Version) -> StartedSandbox | None:
        """A running sandbox for a new session of a version, if one is ready."""
        demand = self._demand(version)
        found = None if demand is None else self._claim(demand.started)
        if not isinstance(found, StartedSandbox):
            return None
        self._launcher.driver.thaw(found.agent.sandbox.name)
        return found

    def claim_primed(self, version: Version) -> PrimedSandbox | None:
        """A waiting interpreter for any session of a version, if one is ready."""
        demand = self._demand(version)
        found = None if demand is None else self._claim(demand.primed)
        return found if isinstance(found, PrimedSandbox) else None

    def _claim(self, shelf: _Shelf) -> Pooled | None:
        shelf.note(self._clock())
        while shelf.ready:
            pooled, _ = shelf.ready.pop(0)
            if not pooled.agent.sandbox.exited.done():
                return pooled
            self.discard(pooled)
        return None

    def forget(self, version_key: int) -> None:
        """What was made ahead for a version is out of date: remove it, and make no more until it is wanted again."""
        demand = self._demands.pop(version_key, None)
        if demand is not None:
            for shelf in demand.shelves:
                for pooled, _ in shelf.ready:
                    self.discard(pooled)
        if self._making is not None and self._making[0] == version_key:
            self._making[1].cancel()

    def forget_all(self) -> None:
        """Remove everything that was made ahead."""
        for key in list(self._demands):
            self.forget(key)
        if self._making is not None:
            self._making[1].cancel()

    def give_up_one(self) -> bool:
        """Remove the sandbox that is needed least; False when there is none."""
        full = [shelf for demand in self._demands.values() for shelf in demand.shelves if shelf.ready]
        if not full:
            return False
        least = min(full, key=lambda shelf: shelf.last_wanted)
        # Not made again at once: room was just needed for something else.
        least.retry_at = self._clock() + RETRY_AFTER
        self.discard(least.ready.pop(0)[0])
        return True

    def discard(self, pooled: Pooled) -> None:
        """Remove a sandbox that will not be used, in the background."""
        if self._group is not None:
            self._group.create_task(self._remove(pooled), name="discard a sandbox made ahead")

    async def drained(self, version_key: int) -> None:
        """Returns when nothing of a version is being made."""
        making = self._making
        self.forget(version_key)
        if making is not None and making[0] == version_key:
            await asyncio.wait([making[1]])

    def _demand(self, version: Version) -> _Demand | None:
        if not self._size or self._group is None:
            return None
        self._wake.set()
        return self._demands.setdefault(version.key, _Demand(version))

    def _tidy(self) -> None:
        now = self._clock()
        for key, demand in list(self._demands.items()):
            for shelf in demand.shelves:
                for entry in list(shelf.ready):
                    pooled, made_at = entry
                    stale = now - made_at > MAXIMUM_AGE or pooled.agent.sandbox.exited.done()
                    if stale or len(shelf.ready) > shelf.size(now, self._size):
                        shelf.ready.remove(entry)
                        self.discard(pooled)
            if now - demand.last_wanted > FORGET_AFTER and not any(shelf.ready for shelf in demand.shelves):
                del self._demands[key]

    def _refill(self, group: asyncio.TaskGroup) -> None:
        if self._making is not None or self._launcher.starting:
            return
        now = self._clock()
        lacking = [
            (len(shelf.ready), -shelf.last_wanted, number, demand, shelf)
            for number, demand in enumerate(self._demands.values())
            for shelf in demand.shelves
            if shelf.lacks(now, self._size)
        ]
        if lacking:
            # Who has the fewest goes first, then who was wanted last.
            *_, demand, shelf = min(lacking, key=lambda entry: entry[:3])
            task = group.create_task(self._make(demand, shelf), name=f"make ahead {demand.version.name}")
            self._making = (demand.version.key, task)
            task.add_done_callback(lambda _: self._made())

    def _made(self) -> None:
        self._making = None
        self._wake.set()

    async def _make(self, demand: _Demand, shelf: _Shelf) -> None:
        try:
            if not demand.plan_is_known:
                demand.plan = await self._primer.plan(demand.version)
                demand.plan_is_known = True
            pooled = await self._prepare(demand, primed=shelf is demand.primed)
        except (StartFailed, PrimingFailed, NotPrimable) as error:
            logger.warning("no sandbox could be made ahead for %s: %s", demand.version.name, error)
        except Exception:
            logger.exception("no sandbox could be made ahead for %s", demand.version.name)
        else:
            if pooled is not None and self._demands.get(demand.version.key) is demand:
                shelf.ready.append((pooled, self._clock()))
                return
            if pooled is not None:
                await self._remove(pooled)
        shelf.retry_at = self._clock() + RETRY_AFTER

    async def _prepare(self, demand: _Demand, *, primed: bool) -> Pooled | None:
        version = demand.version
        image = await self._images.load(version.digest or "")
        if image is None or (primed and demand.plan is None):
            return None
        place = self._launcher.admission.try_take(version.definition.memory_bytes)
        if place is None:
            return None
        if primed and demand.plan is not None:
            return await self._primer.prime(version, image, demand.plan, place)
        return await self._start(version, image, place)

    async def _start(self, version: Version, image: Image, place: Place) -> StartedSandbox:
        guid = new_session_guid()
        session = SandboxSession(new_session_id(), guid, self._volumes.path(guid))
        log = SessionLog(self._logs / guid)
        log.status(f"Starting the sandbox on version {version.number}, ahead of its session.")
        try:
            agent = await self._launcher.launch(version, image, session, log, place)
        except BaseException:
            await self._remove_files(session, log)
            raise
        agent.kind = "started"
        log.status(agent.describe())
        pooled = StartedSandbox(version, session, log, agent)
        try:
            if self._launcher.driver.can_freeze:
                await self._launcher.driver.freeze(agent.sandbox.name)
        except BaseException:
            await self._remove(pooled)
            raise
        return pooled

    async def _remove(self, pooled: Pooled) -> None:
        if isinstance(pooled, PrimedSandbox):
            await self._primer.discard(pooled)
            return
        await self._launcher.stop(pooled.agent, 0)
        await self._remove_files(pooled.session, pooled.log)

    async def _remove_files(self, session: SandboxSession, log: SessionLog) -> None:
        log.close()
        await asyncio.to_thread(self._volumes.remove, session.guid)
        await asyncio.to_thread(shutil.rmtree, self._logs / session.guid, True)
