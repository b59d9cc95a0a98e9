"""Sessions of the soak agent under load: asked, streamed from, given files, stopped. Every answer is checked."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import httpx2

from tests.soak import client
from tests.soak.client import SESSIONS, Answer, NoAnswer, SoakFailed
from tests.soak.leaks import Installation
from tests.system.platform import Platform

SESSION_COUNT = 10
WORKERS = 6
FILES_EACH = 30
LARGEST_FILE = 200_000
ANSWER_DEADLINE = 60.0
"""Seconds in which a session whose sandbox or server was killed answers again."""
PAUSE_DEADLINE = 90.0
"""Seconds in which requests end once no more are made."""


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
class Counts:
    """What was asked and answered."""

    answers: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    files: int = 0
    downloads: int = 0


class Load:
    """Workers that ask at random. Failures need a disturbance that excuses them; anything else is raised by `work`."""

    def __init__(self, platform: Platform, source: random.Random) -> None:
        self.counts = Counts()
        self.sessions = {f"soak-session-{number}": Known() for number in range(SESSION_COUNT)}
        self.disturbances: list[Disturbance] = []
        self._platform = platform
        self._installation = Installation(platform.data)
        self._random = source
        self._go = asyncio.Event()
        self._asking = 0
        self._number = 0
        self._http: httpx2.AsyncClient | None = None

    async def connect(self) -> None:
        """Talk to the server as it is now."""
        await self.disconnect()
        self._http = await asyncio.to_thread(client.connect, self._platform)

    async def disconnect(self) -> None:
        """Leave the server."""
        if self._http is not None:
            await self._http.aclose()

    def resume(self) -> None:
        """Let workers ask."""
        self._go.set()

    def hold(self) -> None:
        """Let workers begin nothing new."""
        self._go.clear()

    async def quiet(self) -> None:
        """Returns when nothing is being asked. Raises SoakFailed when that takes too long."""
        end = time.monotonic() + PAUSE_DEADLINE
        while self._asking:
            if time.monotonic() > end:
                raise SoakFailed("requests go on for ever")
            await asyncio.sleep(0.01)

    async def work(self) -> None:
        """Ask for ever. Raises SoakFailed, WrongAnswer."""
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

    def any_session(self) -> str:
        # Some are asked often, some seldom enough to be frozen.
        weights = [1 / (1 + number) for number in range(len(self.sessions))]
        return self._random.choices(list(self.sessions), weights)[0]

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
            self.counts.failures[str(error)] += 1
            return None
        self.counts.answers[answer.tier] += 1
        if session is not None:
            self.sessions[session].succeeded = max(began, self.sessions[session].succeeded)
        return answer

    def _excused(self, session: str | None, began: float) -> bool:
        """Whether something was killed or stopped that the session has not recovered from before the request began."""
        guids = self._installation.guids()
        recovered = 0.0 if session is None else self.sessions[session].succeeded
        return any(
            (found.session is None or session is None or guids.get(found.session, found.session) == session)
            and max(recovered, began - ANSWER_DEADLINE) <= found.ended
            for found in self.disturbances
        )

    async def _write(self) -> None:
        """The agent makes a file."""
        session = self.any_session()
        await self._make_room(session)
        place, name, size = self._new_file(("home", "files"))
        written = await self._ask(session, do="write", place=place, name=name, size=size, content=name)
        if written is not None:
            self._remember(session, f"{place}/{name}", _content(name, size))

    async def _upload(self) -> None:
        """A caller makes a file."""
        session = self.any_session()
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
        self.sessions[session].files[path] = hashlib.sha256(content).hexdigest()
        self.counts.files += 1

    async def _make_room(self, session: str) -> None:
        known = self.sessions[session].files
        if len(known) >= FILES_EACH:
            oldest = next(iter(known))
            # From now on it may be there or not.
            del known[oldest]
            place, _, name = oldest.partition("/")
            await self._ask(session, do="remove", place=place, name=name)

    async def _download(self) -> None:
        session = self.any_session()
        known = self.sessions[session].files
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
        self.counts.downloads += 1

    async def _stream(self) -> None:
        pause = self._random.uniform(0, 0.05)
        await self._ask(self.any_session(), do="nothing", pieces=self._random.randrange(1, 20), pause=pause)

    async def _look(self) -> None:
        session = self.any_session()
        expected = dict(self.sessions[session].files)
        answer = await self._ask(session, do="hashes")
        if answer is not None:
            self._compare(session, expected, answer)

    def _compare(self, session: str, expected: dict[str, str], answer: Answer) -> None:
        now = self.sessions[session].files
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
        session = self.any_session()
        stop = Disturbance("stop", session, time.monotonic())
        self.disturbances.append(stop)
        await self._manage("POST", f"{SESSIONS}/{session}:stop")
        stop.ended = time.monotonic()

    async def _manage(self, method: str, path: str, content: bytes | None = None) -> httpx2.Response | None:
        """A request that no sandbox answers, so that only the server's death excuses its failure; None after that."""
        assert self._http is not None
        began = time.monotonic()
        try:
            answer = await self._http.request(method, path, content=content)
        except httpx2.TransportError as error:
            if not any(found.kind == "server" and began <= found.ended for found in self.disturbances):
                raise SoakFailed(f"{method} {path} failed without a cause: {error!r}") from error
            return None
        # A session that nobody has asked anything yet does not exist.
        if answer.status_code not in (200, 201, 204, 404):
            raise SoakFailed(f"{method} {path} was answered {answer.status_code}: {answer.text}")
        return answer

    async def _rest(self) -> None:
        await asyncio.sleep(self._random.uniform(0.1, 1.0))

    async def answers(self, session: str) -> None:
        """Wait until a session answers, with its files."""
        end = time.monotonic() + ANSWER_DEADLINE
        while time.monotonic() < end:
            expected = dict(self.sessions[session].files)
            answer = await self._ask(session, do="hashes")
            if answer is not None:
                self._compare(session, expected, answer)
                return
        raise SoakFailed(f"session {session} does not answer any more")


def _content(name: str, size: int) -> bytes:
    """What a file of some name and size holds; the agent makes the same."""
    return hashlib.shake_256(name.encode()).digest(size)
