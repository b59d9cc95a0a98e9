"""Suspend and resume: sessions of two agents are asked again when they have been put to rest after a second without requests.

Sandboxes of one agent are frozen and thawed, those of the other stopped and started. No answer may be lost or come twice, and
at the end memory, descriptors and latency must be what they were near the beginning. As root:
`python tests/soak/rest.py --cycles 10000`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402

from tests.soak.client import Answer, NoAnswer, SoakFailed, WrongAnswer, ask, build_agent, connect  # noqa: E402
from tests.soak.hasty_server import SPEED  # noqa: E402
from tests.soak.leaks import Installation  # noqa: E402
from tests.system.platform import Platform, traces  # noqa: E402

TIMEOUT = 120
"""The idle timeout, and the time until a sandbox is frozen: a second of the hasty server."""
FROZEN, STORED = "soak-frozen", "soak-stored"
SESSION_COUNTS = {FROZEN: 24, STORED: 6}
REST = (1.0, 2.2)
"""Least and most seconds without a question: sometimes just when the sandbox is put to rest, mostly after that."""
SAMPLE_INTERVAL = 1.0
TENTHS = 10
AHEAD = 2
QUIET_DEADLINE = 30.0
SETTINGS = {"CUPOLA_FREEZE_AFTER": str(TIMEOUT), "CUPOLA_POOL_SIZE": str(AHEAD)}

# What the last tenth may have at most of what the second one has, as a factor and an addition. The first one fills caches.
MEMORY_MARGIN = (1.10, 8.0)
DESCRIPTORS_MARGIN = (1.10, 10.0)
P50_MARGIN = (1.5, 5.0)
P99_MARGIN = (2.0, 100.0)


@dataclass
class Tenth:
    """What was measured in a tenth of the run: milliseconds by agent, samples of the server. `running` are requests to
    sandboxes that were awake, which tell how busy the machine was."""

    woken: dict[str, list[float]] = field(default_factory=lambda: {FROZEN: [], STORED: []})
    running: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)

    def figures(self) -> list[float]:
        return [
            percentile(self.memory, 0.5),
            percentile(self.descriptors, 0.5),
            *(percentile(self.woken[agent], share) for agent in (FROZEN, STORED) for share in (0.5, 0.99)),
        ]


FIGURES = (
    ("RSS MiB", MEMORY_MARGIN),
    ("descriptors", DESCRIPTORS_MARGIN),
    ("thaw p50 ms", P50_MARGIN),
    ("thaw p99 ms", P99_MARGIN),
    ("start p50 ms", P50_MARGIN),
    ("start p99 ms", P99_MARGIN),
)


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass
class Summary:
    """What happened in a run. `tiers` is how requests found their sandboxes."""

    seed: int
    tiers: Counter[str] = field(default_factory=Counter)
    tenths: list[Tenth] = field(default_factory=lambda: [Tenth() for _ in range(TENTHS)])
    seconds: float = 0.0

    def table(self) -> str:
        head = "tenth  " + "  ".join(f"{name:>12}" for name in (*(name for name, _ in FIGURES), "awake p50 ms"))
        rows = [
            f"{number:>5}  "
            + "  ".join(f"{figure:>12.1f}" for figure in (*tenth.figures(), percentile(tenth.running, 0.5)))
            for number, tenth in enumerate(self.tenths, 1)
        ]
        tiers = ", ".join(f"{tier} {count}" for tier, count in self.tiers.most_common())
        return "\n".join((head, *rows, f"requests by tier: {tiers}; {self.seconds:.0f} s"))

    def risen(self) -> list[str]:
        """What the last tenth has too much of, compared with the second one. Times may rise as those of sandboxes do that are
        awake: then the machine is busier."""
        early, late = self.tenths[1], self.tenths[-1]
        busier = max(1.0, percentile(late.running, 0.5) / max(percentile(early.running, 0.5), 0.001))
        return [
            f"{name} rose from {before:.1f} to {after:.1f}"
            for (name, (factor, extra)), before, after in zip(FIGURES, early.figures(), late.figures(), strict=True)
            if after > factor * before * (busier if name.endswith("ms") else 1.0) + extra
        ]


class Rests:
    """One run on one platform."""

    def __init__(self, platform: Platform, cycles: int, seed: int) -> None:
        self.summary = Summary(seed)
        self._platform = platform
        self._cycles = cycles
        self._done = 0
        self._random = random.Random(seed)  # noqa: S311

    async def run(self) -> None:
        """Raises SoakFailed, WrongAnswer."""
        began = time.monotonic()
        async with await asyncio.to_thread(connect, self._platform) as http, asyncio.TaskGroup() as group:
            measuring = group.create_task(self._measure())
            asking = [
                group.create_task(self._ask_again_and_again(http, agent, f"{agent}-{number}"))
                for agent, count in SESSION_COUNTS.items()
                for number in range(count)
            ]
            await asyncio.wait(asking)
            measuring.cancel()
        self.summary.seconds = time.monotonic() - began
        await self._nothing_is_left()

    @property
    def _tenth(self) -> Tenth:
        return self.summary.tenths[min(TENTHS - 1, TENTHS * self._done // self._cycles)]

    async def _ask_again_and_again(self, http: httpx2.AsyncClient, agent: str, session: str) -> None:
        asked = 0

        async def count() -> Answer:
            nonlocal asked
            asked += 1
            try:
                answer = await ask(http, session, {"do": "count"}, agent)
            except NoAnswer as error:
                raise SoakFailed(f"session {session} did not answer question {asked}: {error}") from error
            if answer.result != asked:
                raise SoakFailed(f"session {session} was asked {asked} times and counts {answer.result}")
            self.summary.tiers[answer.tier] += 1
            return answer

        await count()
        while self._done < self._cycles:
            await asyncio.sleep(self._random.uniform(*REST))
            woken, again = await count(), await count()
            self._tenth.running.append(1000 * again.seconds)
            if woken.tier == "running":
                continue
            self._tenth.woken[agent].append(1000 * woken.seconds)
            self._done += 1
            if self._done % max(1, self._cycles // TENTHS) == 0:
                print(f"cycle {self._done:>6}: {dict(self.summary.tiers)}", flush=True)

    async def _measure(self) -> None:
        processes = [Path(f"/proc/{process}") for process in self._platform.processes]
        while True:
            statuses = [(process / "status").read_text() for process in processes]
            kilobytes = [
                int(line.split()[1]) for text in statuses for line in text.splitlines() if line.startswith("VmRSS:")
            ]
            self._tenth.memory.append(sum(kilobytes) / 1024)
            self._tenth.descriptors.append(sum(len(list((process / "fd").iterdir())) for process in processes))
            await asyncio.sleep(SAMPLE_INTERVAL)

    async def _nothing_is_left(self) -> None:
        installation = Installation(self._platform.data)
        end = time.monotonic() + QUIET_DEADLINE
        while found := await asyncio.to_thread(installation.leaks, self._platform.pid, 2 * AHEAD):
            if time.monotonic() > end:
                raise SoakFailed(f"left over: {found}")
            await asyncio.sleep(0.2)


def soak(folder: Path, cycles: int, seed: int) -> Summary:
    """Start a hasty server with its data in a folder, let sessions rest and wake so many times, stop it and look what is left.

    Raises SoakFailed, WrongAnswer.
    """
    platform = Platform(folder / "data", SETTINGS, (sys.executable, str(ROOT / "tests/soak/hasty_server.py"))).start()
    try:
        image = build_agent(folder)
        for agent, timeout in ((FROZEN, 0), (STORED, TIMEOUT)):
            resting = {"session_configuration": {"idle_timeout_seconds": timeout}, "enable_memory_snapshot": True}
            version = platform.deploy(agent, image, **resting)
            if version["status"] != "active":
                raise SoakFailed(f"the deployment failed: {version['error']}")
        rests = Rests(platform, cycles, seed)
        try:
            asyncio.run(rests.run())
        except* (SoakFailed, WrongAnswer) as failures:
            raise SoakFailed(str(failures.exceptions[0])) from failures
    finally:
        code = platform.stop()
    if code != 0:
        raise SoakFailed(f"the server ended with {code}")
    left = traces(platform.data)
    if left:
        raise SoakFailed(f"left over after the server's end: {left}")
    return rests.summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("rest: sandboxes need root")
    folder = Path(tempfile.mkdtemp(prefix="cupola-soak-"))
    print(f"seed {chosen.seed}, {SPEED} seconds of idleness in one", flush=True)
    try:
        summary = soak(folder, chosen.cycles, chosen.seed)
    except (SoakFailed, AssertionError) as error:
        print(f"FAILED with --seed {chosen.seed}: {error}\nwhat is left is in {folder}")
        sys.exit(1)
    shutil.rmtree(folder)
    print(f"\n{summary.table()}")
    if risen := summary.risen():
        print(f"FAILED with --seed {chosen.seed}: {'; '.join(risen)}")
        sys.exit(1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
