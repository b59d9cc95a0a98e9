"""Kill -9 of the node, of the server, of sandboxes' first processes and of their children, at random under load; then look at
what is left.

Every answer must be that of the session that was asked, failures need a cause, sessions come back, acknowledged files stay as
they were, and nothing of the dead is left on the machine. As root: `python tests/soak/crash.py --rounds 1000`.
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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.soak.client import AGENT, SoakFailed, WrongAnswer, build_agent  # noqa: E402
from tests.soak.leaks import Installation  # noqa: E402
from tests.soak.load import WORKERS, Counts, Disturbance, Load  # noqa: E402
from tests.system.platform import Platform, traces  # noqa: E402

BATCH = 25
AHEAD = 1
QUIET_DEADLINE = 30.0
"""Seconds in which nothing is left of what was killed, once nobody asks anything."""
KINDS = ("node", "server", "sandbox", "child")
SETTINGS = {"CUPOLA_FREEZE_AFTER": "0.5", "CUPOLA_POOL_SIZE": str(AHEAD), "CUPOLA_STOP_GRACE": "5"}


@dataclass(frozen=True)
class Summary:
    """What happened in a run."""

    kills: Counter[str]
    counts: Counts
    checks: int
    seconds: float

    def table(self) -> str:
        def row(name: str, counts: Counter[str]) -> str:
            detail = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
            return f"{name:<34}{counts.total():>8}  {detail}"

        return "\n".join(
            (
                row("kill -9", self.kills),
                row("answers, by tier", self.counts.answers),
                row("failed requests, all with a cause", self.counts.failures),
                f"{'files acknowledged':<34}{self.counts.files:>8}",
                f"{'files downloaded intact':<34}{self.counts.downloads:>8}",
                f"{'checks of what is left':<34}{self.checks:>8}",
                f"{'seconds':<34}{self.seconds:>8.0f}",
            )
        )


class Crash:
    """One run on one platform."""

    def __init__(self, platform: Platform, seed: int) -> None:
        self._platform = platform
        self._installation = Installation(platform.data)
        self._random = random.Random(seed)  # noqa: S311
        self._load = Load(platform, self._random)
        self._kills: Counter[str] = Counter()
        self._checks = 0

    async def run(self, rounds: int) -> Summary:
        """Raises SoakFailed, WrongAnswer."""
        began = time.monotonic()
        await self._load.connect()
        self._load.resume()
        workers = [asyncio.create_task(self._load.work()) for _ in range(WORKERS)]
        kills = asyncio.create_task(self._kill_again_and_again(rounds))
        try:
            # A worker never returns: the first one that is done has failed.
            done, _ = await asyncio.wait([kills, *workers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (kills, *workers):
                task.cancel()
            await asyncio.gather(kills, *workers, return_exceptions=True)
            await self._load.disconnect()
        return Summary(self._kills, self._load.counts, self._checks, time.monotonic() - began)

    async def _kill_again_and_again(self, rounds: int) -> None:
        kills = {
            "node": self._kill_node,
            "server": self._kill_server,
            "sandbox": self._kill_sandbox,
            "child": self._kill_child,
        }
        while (killed := self._kills.total()) < rounds:
            await asyncio.sleep(self._random.uniform(0.02, 0.8))
            session = await kills[self._random.choice(KINDS)]()
            number = self._kills.total()
            if number == killed:
                continue
            await self._load.answers(session or self._load.any_session())
            if number % BATCH == 0 or number == rounds:
                await self._check_everything()
                answers = self._load.counts.answers.total()
                print(f"round {number:>5}: {dict(self._kills)}, {answers} answers", flush=True)

    async def _kill_node(self) -> str | None:
        return await self._kill_platform("node", self._platform.kill)

    async def _kill_server(self) -> str | None:
        return await self._kill_platform("server", self._platform.kill_server)

    async def _kill_platform(self, kind: str, kill_and_wait: Callable[[], None]) -> str | None:
        """Each of the two processes takes the other along."""
        kill = Disturbance("server", None, time.monotonic())
        self._load.disturbances.append(kill)
        self._load.hold()
        await asyncio.to_thread(kill_and_wait)
        self._kills[kind] += 1
        await self._load.quiet()
        await asyncio.to_thread(self._platform.start)
        left = traces(self._platform.data)
        if left:
            raise SoakFailed(f"a new server has left over of the dead one: {left}")
        await self._load.connect()
        kill.ended = time.monotonic()
        self._load.resume()
        return None

    async def _kill_sandbox(self) -> str | None:
        return await self._kill_process("sandbox", lambda process: _number_inside(process) == 1)

    async def _kill_child(self) -> str | None:
        return await self._kill_process("child", lambda process: _number_inside(process) > 1)

    async def _kill_process(self, kind: str, wanted: Callable[[int], bool]) -> str | None:
        """Kill a process of some sandbox; returns the id of the session whose it was, if that is known. None may be there, or
        end by itself just then."""
        candidates = [
            (sandbox, process)
            for sandbox in self._installation.sandboxes()
            for process in self._installation.processes(sandbox)
            if wanted(process)
        ]
        if not candidates:
            return None
        sandbox, process = self._random.choice(candidates)
        guid = self._installation.session_of(process)
        began = time.monotonic()
        if kind == "sandbox":
            # Before it is killed: the news may be everywhere before this goes on.
            self._load.disturbances.append(Disturbance(kind, guid, began, began + 1.0))
        try:
            descriptor = os.pidfd_open(process)
        except ProcessLookupError:
            return None
        try:
            # Only now it is certain whose process has this number.
            if process in self._installation.processes(sandbox):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                self._kills[kind] += 1
        finally:
            os.close(descriptor)
        session = self._installation.guids().get(guid or "")
        return session if session in self._load.sessions else None

    async def _check_everything(self) -> None:
        self._load.hold()
        await self._load.quiet()
        for session in self._load.sessions:
            await self._load.answers(session)
        self._load.disturbances.clear()
        found: list[str] = []
        end = time.monotonic() + QUIET_DEADLINE
        while time.monotonic() < end:
            found = await asyncio.to_thread(self._installation.leaks, self._platform.pid, 2 * AHEAD)
            if not found:
                self._checks += 1
                self._load.resume()
                return
            await asyncio.sleep(0.2)
        raise SoakFailed(f"left over: {found}")


def _number_inside(process: int) -> int:
    """The number of a process in its sandbox, where the first one is 1; 0 when it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return int(next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1])


def soak(folder: Path, rounds: int, seed: int) -> Summary:
    """Start a platform with its data in a folder, kill at random for so many rounds, stop it and look again.

    Raises SoakFailed, WrongAnswer.
    """
    platform = Platform(folder / "data", SETTINGS).start()
    try:
        version = platform.deploy(AGENT, build_agent(folder), enable_memory_snapshot=True)
        if version["status"] != "active":
            raise SoakFailed(f"the deployment failed: {version['error']}")
        summary = asyncio.run(Crash(platform, seed).run(rounds))
    finally:
        code = platform.stop()
    if code != 0:
        raise SoakFailed(f"the server ended with {code}")
    left = traces(platform.data)
    if left:
        raise SoakFailed(f"left over after the server's end: {left}")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    chosen = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("crash: sandboxes need root")
    folder = Path(tempfile.mkdtemp(prefix="cupola-soak-"))
    print(f"seed {chosen.seed}", flush=True)
    try:
        summary = soak(folder, chosen.rounds, chosen.seed)
    except (SoakFailed, WrongAnswer, AssertionError) as error:
        print(f"FAILED with --seed {chosen.seed}: {error}\nwhat is left is in {folder}")
        sys.exit(1)
    print(f"\n{summary.table()}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
