"""What sandboxes may keep on the disk: a limit for each, and a reserve that all of them together leave free.

Where the file system of the data folder has project quotas, it refuses what is above a limit. Elsewhere a watch measures
sandboxes and stops those above. It measures one only when so much has been written to the disk since the last time that it
may have come near its limit: to see that costs microseconds. The reserve is watched everywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cupola.sandbox.base import MIB, SandboxError
from cupola.sandbox.oci import meter
from cupola.sandbox.oci.cgroup import ControlGroups
from cupola.sandbox.oci.quota import ProjectQuotas

logger = logging.getLogger(__name__)

INODE_SIZE = 16 * 1024
"""Bytes that a file counts at least where a limit of files is derived from one of bytes, as ext4 does for a whole disk."""
LOOK_INTERVAL = 0.25
SHORT_INTERVAL = 0.05
"""Seconds between two looks at the free space, usually, and while it is short."""
LEAST_STEP = 64 * MIB
"""A sandbox is not measured again before this was written, or a sixteenth of the limit if that is less."""
LONGEST_INTERVAL = 15.0
"""Seconds after which a sandbox is measured if the free space is not the same: removals may hide additions."""
METER_DEADLINE = 60.0
SHORT_DEADLINE = 2.0
"""Seconds a measurement may take, usually, and while space is short: sandboxes stand still meanwhile."""
GROWTH = 4 * MIB
"""What may be written while space is short before it is looked for who does."""
FEW = 500
"""Files that are counted at once; more are left to the meter."""
UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Amount:
    """An amount of disk space: free, used, or a limit."""

    size: int
    inodes: int

    def beyond(self, other: Amount) -> int:
        """How many bytes larger than the other it is; a file counts as some."""
        return max(self.size - other.size, 0) + max(self.inodes - other.inodes, 0) * INODE_SIZE

    def room(self, used: Amount) -> int:
        """As a limit: the bytes, or bytes' worth of files, that may still be added."""
        return min(self.size - used.size, (self.inodes - used.inodes) * INODE_SIZE)

    def most(self, other: Amount) -> Amount:
        return Amount(max(self.size, other.size), max(self.inodes, other.inodes))

    def exceeds(self, other: Amount) -> bool:
        return self.size > other.size or self.inodes > other.inodes


def amount_of(size: int) -> Amount:
    """A limit in bytes with the number of files that goes with it."""
    return Amount(size, size // INODE_SIZE)


def free_space(directory: Path) -> Amount:
    """What the file system of a directory has left for whoever is not root."""
    found = os.statvfs(directory)
    return Amount(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else UNLIMITED)


@dataclass(eq=False)
class _Claim:
    """Directories of a sandbox that have one limit together, and what was measured of them."""

    sandbox: str
    directories: tuple[Path, ...]
    project: int | None = None
    usage: Amount | None = None
    free: Amount | None = None
    at: float = 0.0


class Disk:
    """The disk of one driver's sandboxes.

    `directory` is on the file system in question. `limit` and `reserve` are in bytes, 0 is none. `stop` is called with
    a sandbox's name and the reason why it has to end, and tells whether it is running.
    """

    def __init__(
        self,
        directory: Path,
        limit: int,
        reserve: int,
        groups: ControlGroups,
        stop: Callable[[str, str], bool],
    ) -> None:
        self._directory = directory
        self._limit = amount_of(limit) if limit else Amount(UNLIMITED, UNLIMITED)
        self._least_step = min(LEAST_STEP, self._limit.size // 16)
        self._reserve = amount_of(reserve)
        self._groups = groups
        self._stop = stop
        self._quotas: ProjectQuotas | None = None
        self._claims: list[_Claim] = []
        self._stopped: set[str] = set()
        self._too_large: set[Path] = set()
        self._rest_until = 0.0
        self._short = False
        self._watching: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Find out how limits can be held here, write it to the log, and begin to watch."""
        if self._limit.size != UNLIMITED:
            quotas = ProjectQuotas(self._directory)
            if quotas.enforced():
                self._quotas = quotas
                logger.info("each sandbox may keep %s on the disk; project quotas hold it", describe(self._limit.size))
            else:
                quotas.close()
                logger.info(
                    "each sandbox may keep %s on the disk; %s has no project quotas in force, so one that keeps more is "
                    "noticed after a while and stopped",
                    *(describe(self._limit.size), self._directory),
                )
        if self._limit.size != UNLIMITED or self._reserve.size:
            self._watching = asyncio.get_running_loop().create_task(self._watch(), name="disk watch")

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._quotas is not None:
            self._quotas.close()

    def claim(self, sandbox: str, durable: Sequence[Path], *others: Path) -> None:
        """Hold a sandbox to the limit in some directories, of which the durable ones stay after it. Blocks.

        Raises SandboxError when the disk is full, or the durable directories alone are above the limit.
        """
        free = free_space(self._directory)
        if self._half_of_reserve().exceeds(free):
            raise SandboxError(
                f"the disk of {self._directory} has less than half of the reserve of {describe(self._reserve.size)} left; "
                "free some space, or lower the setting disk_reserve"
            )
        if not self._too_large.isdisjoint(durable):
            most = meter.Count(self._limit.size, self._limit.inodes)
            if Amount(*meter.measure([*map(str, durable)], [], most)).exceeds(self._limit):
                raise SandboxError(
                    f"the session's files take more than the {describe(self._limit.size)} of the setting session_disk; "
                    "remove some"
                )
            self._too_large.difference_update(durable)
        claim = _Claim(sandbox, (*durable, *others))
        usage = Amount(*meter.measure([*map(str, durable)], [], meter.Count(UNLIMITED, FEW)))
        if usage.inodes <= FEW:
            claim.usage, claim.free, claim.at = usage, free, time.monotonic()
        if self._quotas is not None:
            claim.project = self._quotas.limit(claim.directories, self._limit.size, self._limit.inodes)
            if claim.project is None:
                logger.warning("%s cannot have a quota, so it is only watched", claim.directories[0])
        self._claims.append(claim)

    def release(self, sandbox: str) -> None:
        """Forget a sandbox that was removed. Blocks for a moment."""
        for claim in [claim for claim in self._claims if claim.sandbox == sandbox]:
            self._claims.remove(claim)
            if self._quotas is not None and claim.project is not None and not claim.directories[0].exists():
                self._quotas.forget(claim.project)
        self._stopped.discard(sandbox)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(SHORT_INTERVAL if self._short else LOOK_INTERVAL)
            watched = [claim for claim in self._claims if claim.sandbox not in self._stopped]
            if watched:
                try:
                    await self._look(watched)
                except (OSError, ValueError):
                    logger.exception("the disk space that sandboxes use could not be measured")

    async def _look(self, watched: list[_Claim]) -> None:
        free = await asyncio.to_thread(free_space, self._directory)
        self._short = self._reserve.exceeds(free)
        for claim in watched:
            # What somebody has removed must not hide what is added from now on.
            claim.free = free if claim.free is None else claim.free.most(free)
        began = time.monotonic()
        due = [claim for claim in watched if self._is_due(claim, free, began)]
        if not due or (began < self._rest_until and not self._short):
            return
        held = [name for name in {claim.sandbox for claim in due} if self._short and not self._groups.is_frozen(name)]
        try:
            # Whoever fills the disk must not be faster than the measurement.
            await asyncio.gather(*(asyncio.to_thread(self._groups.freeze, name) for name in held))
            added = await self._growth(due)
        finally:
            for name in held:
                self._groups.thaw(name)
        for claim in due:
            claim.free, claim.at = free, began
        self._rest_until = 2 * time.monotonic() - began
        self._end_too_large(due)
        if self._short:
            self._end_who_fills(added, self._half_of_reserve().exceeds(free))

    def _half_of_reserve(self) -> Amount:
        return Amount(self._reserve.size // 2, self._reserve.inodes // 2)

    def _is_due(self, claim: _Claim, free: Amount, now: float) -> bool:
        """Whether a sandbox may have come near its limit since it was measured."""
        if claim.usage is None or claim.free is None:
            return True
        if free != claim.free and now - claim.at > LONGEST_INTERVAL:
            return True
        step = GROWTH if self._short else max(self._least_step, self._limit.room(claim.usage) // 2)
        return claim.free.beyond(free) > step

    async def _growth(self, claims: list[_Claim]) -> dict[_Claim, int]:
        """Measure; returns what each has added since it was measured before."""
        before = {claim: claim.usage or Amount(0, 0) for claim in claims}
        try:
            usages = await self._measure(claims, SHORT_DEADLINE if self._short else METER_DEADLINE)
        except TimeoutError:
            logger.warning("it takes too long to measure the disk space that sandboxes use")
            return dict.fromkeys(claims, 0)
        for claim, usage in zip(claims, usages, strict=True):
            claim.usage = usage
        return {claim: usage.beyond(before[claim]) for claim, usage in zip(claims, usages, strict=True)}

    def _end_too_large(self, claims: list[_Claim]) -> None:
        for claim in claims:
            if claim.usage is not None and claim.usage.exceeds(self._limit):
                self._too_large.update(claim.directories)
                self._end(claim, f"it kept more than {describe(self._limit.size)} on the disk, the limit of a session")

    def _end_who_fills(self, added: dict[_Claim, int], at_once: bool) -> None:
        """Stop the one that has added most to a disk that is nearly full; if it must be, all when it cannot be told."""
        most = max(added.values())
        for claim, growth in added.items():
            if growth == most and (most > GROWTH // 4 or at_once):
                self._end(claim, "the disk of the platform is nearly full, and it added most to it")

    def _end(self, claim: _Claim, reason: str) -> None:
        if claim.sandbox not in self._stopped and self._stop(claim.sandbox, reason):
            self._stopped.add(claim.sandbox)
            logger.warning("sandbox %s is stopped: %s", claim.sandbox, reason)

    async def _measure(self, claims: list[_Claim], deadline: float) -> list[Amount]:
        measured = [claim for claim in claims if claim.project is None]
        found = dict(zip(measured, await self._run_meter(measured, deadline), strict=True)) if measured else {}
        return [found[claim] if claim in found else self._quota_usage(claim) for claim in claims]

    def _quota_usage(self, claim: _Claim) -> Amount:
        if self._quotas is None or claim.project is None:
            raise RuntimeError("a claim without a quota")
        return Amount(*self._quotas.usage(claim.project))

    async def _run_meter(self, claims: list[_Claim], deadline: float) -> list[Amount]:
        asked = [
            {"directories": [*map(str, claim.directories)], "processes": self._groups.processes(claim.sandbox)}
            for claim in claims
        ]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", meter.__file__, str(self._limit.size), str(self._limit.inodes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(deadline):
                output, errors = await process.communicate(json.dumps(asked).encode())
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            raise OSError(f"the meter ended with {process.returncode}: {errors[-1000:].decode(errors='replace')}")
        return [Amount(size, inodes) for size, inodes in json.loads(output)]


def describe(size: int) -> str:
    """Bytes as people write them."""
    power = min(int(math.log2(max(size, 1)) // 10), 4)
    return f"{size / 1024**power:.4g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
