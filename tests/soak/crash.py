"""Kill -9 of the server, of sandboxes' first processes and of their children, at random under load; then look at what is left.

Every answer must be that of the session that was asked, failures need a cause, sessions come back, acknowledged files stay as
they were, and nothing of the dead is left on the machine. As root: `python tests/soak/crash.py --rounds 1000`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402

from tests.soak import client  # noqa: E402
from tests.soak.client import AGENT, SESSIONS, Answer, NoAnswer, WrongAnswer  # noqa: E402
from tests.soak.leaks import Installation  # noqa: E402
from tests.system.platform import Platform, traces  # noqa: E402

SESSION_COUNT = 10
WORKERS = 6
BATCH = 25
FILES_EACH = 30
LARGEST_FILE = 200_000
AHEAD = 1
ANSWER_DEADLINE = 60.0
"""Seconds in which a session whose sandbox or server was killed answers again."""
QUIET_DEADLINE = 30.0
"""Seconds in which nothing is left of what was killed, once nobody asks anything."""
KINDS = ("server", "sandbox", "child")
SETTINGS = {"CUPOLA_FREEZE_AFTER": "0.5", "CUPOLA_POOL_SIZE": str(AHEAD), "CUPOLA_STOP_GRACE": "5"}


class SoakFailed(Exception):
    """What must not happen has happened."""


@dataclass
class Disturbance:
    """A kill or a stop, which excuses failed requests. `session` is None when it may be any; `ended` is infinite as long as it
    lasts."""

    kind: str
    session: str | None
    began: float
    ended: float = float("inf")


@dataclass
class Known:
    """What is known of a session: the hashes of acknowledged files, and when the newest successful request began."""

    files: dict[str, str] = field(default_factory=dict)
    succeeded: float = 0.0


@dataclass
class Summary:
    """What happened in a run."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    files: int = 0
    downloads: int = 0
    checks: int = 0
    seconds: float = 0.0

    def table(self) -> str:
        def row(name: str, counts: Counter[str]) -> str:
            detail = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
            return f"{name:<34}{counts.total():>8}  {detail}"

        return "\n".join(
            (
                row("kill -9", self.kills),
                row("answers, by tier", self.answers),
                row("failed requests, all with a cause", self.failures),
                f"{'files acknowledged':<34}{self.files:>8}",
                f"{'files downloaded intact':<34}{self.downloads:>8}",
                f"{'checks of what is left':<34}{self.checks:>8}",
                f"{'seconds':<34}{self.seconds:>8.0f}",
            )
        )


class Crash:
    """One run on one platform."""

    def __init__(self, platform: Platform, seed: int) -> None:
        self.summary = Summary(seed)
        self._platform = platform
        self._installation = Installation(platform.data)
        self._random = random.Random(seed)  # noqa: S311
        self._sessions = {f"soak-session-{number}": Known() for number in range(SESSION_COUNT)}
        self._disturbances: list[Disturbance] = []
        self._go = asyncio.Event()
        self._asking = 0
        self._number = 0
        self._http: httpx2.AsyncClient | None = None

    async def run(self, rounds: int) -> None:
        """Raises SoakFailed, WrongAnswer."""
        began = time.monotonic()
        await self._connect()
        self._go.set()
        load = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        chaos = asyncio.create_task(self._kill_again_and_again(rounds))
        try:
            # A worker never returns: the first one that is done has failed.
            done, _ = await asyncio.wait([chaos, *load], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (chaos, *load):
                task.cancel()
            await asyncio.gather(chaos, *load, return_exceptions=True)
            if self._http is not None:
                await self._http.aclose()
            self.summary.seconds = time.monotonic() - began

    async def _connect(self) -> None:
        if self._http is not None:
            await self._http.aclose()
        self._http = await asyncio.to_thread(client.connect, self._platform)

    # Load

    async def _work(self) -> None:
        deeds: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._write, 20),
            (self._upload, 15),
            (self._download, 10),
            (self._stream, 20),
            (self._look, 15),
            (self._new_session, 15),
            (self._stop, 5),
            (self._rest, 10),
        ]
        while True:
            await self._go.wait()
            chosen = self._random.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])[0]
            self._asking += 1
            try:
                await chosen()
            finally:
                self._asking -= 1

    def _any_session(self) -> str:
        # Some are asked often, some seldom enough to be frozen.
        weights = [1 / (1 + number) for number in range(len(self._sessions))]
        return self._random.choices(list(self._sessions), weights)[0]

    async def _ask(self, session: str | None, **order: object) -> Answer | None:
        """An answer; None when there was none and that has a cause."""
        assert self._http is not None
        began = time.monotonic()
        try:
            answer = await client.ask(self._http, session, order)
        except NoAnswer as error:
            if not self._excused(session, began):
                raise SoakFailed(
                    f"a request to {session or 'a new session'} failed without a cause: {error}"
                ) from error
            self.summary.failures[str(error)] += 1
            return None
        self.summary.answers[answer.tier] += 1
        if session is not None:
            self._sessions[session].succeeded = max(began, self._sessions[session].succeeded)
        return answer

    def _excused(self, session: str | None, began: float) -> bool:
        """Whether something was killed or stopped that the session has not recovered from before the request began."""
        guids = self._installation.guids()
        recovered = 0.0 if session is None else self._sessions[session].succeeded
        return any(
            (found.session is None or session is None or guids.get(found.session, found.session) == session)
            and max(recovered, began - ANSWER_DEADLINE) <= found.ended
            for found in self._disturbances
        )

    async def _write(self) -> None:
        """The agent makes a file."""
        session = self._any_session()
        await self._make_room(session)
        place, name, size = self._new_file(("home", "files"))
        written = await self._ask(session, do="write", place=place, name=name, size=size, content=name)
        if written is not None:
            self._remember(session, f"{place}/{name}", _content(name, size))

    async def _upload(self) -> None:
        """A caller makes a file."""
        session = self._any_session()
        await self._make_room(session)
        place, name, size = self._new_file(("uploads",))
        path = f"{SESSIONS}/{session}/files/content?path={place}/{name}"
        answer = await self._manage("PUT", path, content=_content(name, size))
        if answer is not None and answer.status_code == 201:
            self._remember(session, f"{place}/{name}", _content(name, size))

    def _new_file(self, places: Sequence[str]) -> tuple[str, str, int]:
        self._number += 1
        return self._random.choice(places), f"file-{self._number}", self._random.randrange(LARGEST_FILE)

    def _remember(self, session: str, path: str, content: bytes) -> None:
        self._sessions[session].files[path] = hashlib.sha256(content).hexdigest()
        self.summary.files += 1

    async def _make_room(self, session: str) -> None:
        known = self._sessions[session].files
        if len(known) >= FILES_EACH:
            oldest = next(iter(known))
            # From now on it may be there or not.
            del known[oldest]
            place, _, name = oldest.partition("/")
            await self._ask(session, do="remove", place=place, name=name)

    async def _download(self) -> None:
        session = self._any_session()
        known = self._sessions[session].files
        paths = [path for path in known if not path.startswith("files/")]
        if not paths:
            return
        path = self._random.choice(paths)
        expected = known[path]
        query = path.replace("home/", "soak/")
        answer = await self._manage("GET", f"{SESSIONS}/{session}/files/content?path={query}")
        if answer is None or path not in known:
            return
        if answer.status_code != 200 or hashlib.sha256(answer.content).hexdigest() != expected:
            raise SoakFailed(f"session {session} has lost or changed {path}: {answer.status_code}")
        self.summary.downloads += 1

    async def _stream(self) -> None:
        pause = self._random.uniform(0, 0.05)
        await self._ask(self._any_session(), do="nothing", pieces=self._random.randrange(1, 20), pause=pause)

    async def _look(self) -> None:
        session = self._any_session()
        expected = dict(self._sessions[session].files)
        answer = await self._ask(session, do="hashes")
        if answer is not None:
            self._compare(session, expected, answer)

    def _compare(self, session: str, expected: dict[str, str], answer: Answer) -> None:
        now = self._sessions[session].files
        # What was removed since the question is no longer expected.
        lost = [name for name in expected if name in now and answer.result.get(name) != expected[name]]
        if lost:
            raise SoakFailed(f"session {session} has lost or changed {len(lost)} files, of them {sorted(lost)[:5]}")

    async def _new_session(self) -> None:
        """A session with an id of the platform's, used once and deleted."""
        assert self._http is not None
        answer = await self._ask(None, do="count")
        if answer is None:
            return
        if answer.result != 1:
            raise SoakFailed(f"the new session {answer.session} has files of another one: it counts {answer.result}")
        await self._manage("DELETE", f"{SESSIONS}/{answer.session}")

    async def _stop(self) -> None:
        session = self._any_session()
        stop = Disturbance("stop", session, time.monotonic())
        self._disturbances.append(stop)
        await self._manage("POST", f"{SESSIONS}/{session}:stop")
        stop.ended = time.monotonic()

    async def _manage(self, method: str, path: str, content: bytes | None = None) -> httpx2.Response | None:
        """A request that no sandbox answers, so that only the server's death excuses its failure; None after that."""
        assert self._http is not None
        began = time.monotonic()
        try:
            answer = await self._http.request(method, path, content=content)
        except httpx2.TransportError as error:
            if not any(found.kind == "server" and began <= found.ended for found in self._disturbances):
                raise SoakFailed(f"{method} {path} failed without a cause: {error!r}") from error
            return None
        # A session that nobody has asked anything yet does not exist.
        if answer.status_code not in (200, 201, 204, 404):
            raise SoakFailed(f"{method} {path} was answered {answer.status_code}: {answer.text}")
        return answer

    async def _rest(self) -> None:
        await asyncio.sleep(self._random.uniform(0.1, 1.0))

    # Kills

    async def _kill_again_and_again(self, rounds: int) -> None:
        kills = {"server": self._kill_server, "sandbox": self._kill_sandbox, "child": self._kill_child}
        for number in range(1, rounds + 1):
            await asyncio.sleep(self._random.uniform(0.02, 0.8))
            session = await kills[self._random.choice(KINDS)]()
            await self._answers(session or self._any_session())
            if number % BATCH == 0 or number == rounds:
                await self._check_everything()
                print(
                    f"round {number:>5}: {dict(self.summary.kills)}, {self.summary.answers.total()} answers", flush=True
                )

    async def _kill_server(self) -> str | None:
        kill = Disturbance("server", None, time.monotonic())
        self._disturbances.append(kill)
        self._go.clear()
        await asyncio.to_thread(self._platform.kill)
        self.summary.kills["server"] += 1
        await self._until(lambda: self._asking == 0, "requests to a dead server went on")
        await asyncio.to_thread(self._platform.start)
        left = traces(self._platform.data)
        if left:
            raise SoakFailed(f"a new server has left over of the dead one: {left}")
        await self._connect()
        kill.ended = time.monotonic()
        self._go.set()
        return None

    async def _kill_sandbox(self) -> str | None:
        return await self._kill_process("sandbox", lambda process: _number_inside(process) == 1)

    async def _kill_child(self) -> str | None:
        return await self._kill_process("child", lambda process: _number_inside(process) > 1)

    async def _kill_process(self, kind: str, wanted: Callable[[int], bool]) -> str | None:
        """Kill a process of some sandbox; returns the id of the session whose it was, if that is known."""
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
            self._disturbances.append(Disturbance(kind, guid, began, began + 1.0))
        descriptor = os.pidfd_open(process)
        try:
            # Only now it is certain whose process has this number.
            if process in self._installation.processes(sandbox):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                self.summary.kills[kind] += 1
        finally:
            os.close(descriptor)
        session = self._installation.guids().get(guid or "")
        return session if session in self._sessions else None

    # What must be true

    async def _answers(self, session: str) -> None:
        """Wait until a session answers, with its files."""
        end = time.monotonic() + ANSWER_DEADLINE
        while time.monotonic() < end:
            expected = dict(self._sessions[session].files)
            answer = await self._ask(session, do="hashes")
            if answer is not None:
                self._compare(session, expected, answer)
                return
        raise SoakFailed(f"session {session} does not answer any more")

    async def _check_everything(self) -> None:
        self._go.clear()
        await self._until(lambda: self._asking == 0, "requests go on for ever")
        for session in self._sessions:
            await self._answers(session)
        self._disturbances.clear()
        found: list[str] = []
        end = time.monotonic() + QUIET_DEADLINE
        while time.monotonic() < end:
            found = await asyncio.to_thread(self._installation.leaks, self._platform.pid, 2 * AHEAD)
            if not found:
                self.summary.checks += 1
                self._go.set()
                return
            await asyncio.sleep(0.2)
        raise SoakFailed(f"left over: {found}")

    async def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + client.REQUEST_TIMEOUT + QUIET_DEADLINE
        while not condition():
            if time.monotonic() > end:
                raise SoakFailed(otherwise)
            await asyncio.sleep(0.01)


def _content(name: str, size: int) -> bytes:
    """What a file of some name and size holds; the agent makes the same."""
    return hashlib.shake_256(name.encode()).digest(size)


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
        version = platform.deploy(AGENT, client.build_agent(folder), enable_memory_snapshot=True)
        if version["status"] != "active":
            raise SoakFailed(f"the deployment failed: {version['error']}")
        crash = Crash(platform, seed)
        asyncio.run(crash.run(rounds))
    finally:
        code = platform.stop()
    if code != 0:
        raise SoakFailed(f"the server ended with {code}")
    left = traces(platform.data)
    if left:
        raise SoakFailed(f"left over after the server's end: {left}")
    return crash.summary


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
