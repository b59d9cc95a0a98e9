"""Requests and idle timers race for a live session; the keeper's steps end in any order and at any moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cupola.domain.definition import parse_definition
from cupola.domain.errors import CupolaError
from cupola.domain.session import Session
from cupola.domain.version import Agent, Identity, Version, VersionStatus
from cupola.sandbox.base import Exit, Sandbox
from cupola.sandbox.http import AgentClient
from cupola.sessions.admission import Admission, Limits
from cupola.sessions.launcher import RunningAgent
from cupola.sessions.lifecycle import Status
from cupola.sessions.live import LiveSession
from cupola.telemetry.output import SessionLog

SESSION = Session(1, 1, 1, "session-1", "0" * 32, "owner", False, 0, 0, None)
AGENT = Agent(1, "default", "echo", "guid", Identity("p", "c", "b"), 0)
VERSION = Version(
    1,
    AGENT,
    1,
    parse_definition({"kind": "hosted", "image": "a:1"}),
    {},
    None,
    VersionStatus.ACTIVE,
    None,
    None,
    None,
    0,
)


class Steps:
    """A keeper whose steps end when the test says so, and that knows which sandbox runs."""

    def __init__(self) -> None:
        self.pending: list[asyncio.Future[bool]] = []
        self.awake: set[RunningAgent] = set()
        self.alive: set[RunningAgent] = set()
        self.in_use = 0
        self.forced = False
        self.forgotten = 0
        self.admission = Admission(Limits())

    async def _end(self) -> bool:
        pending: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.pending.append(pending)
        try:
            return await pending
        finally:
            if pending in self.pending:
                self.pending.remove(pending)

    async def start(self, live: LiveSession) -> RunningAgent:
        assert not self.alive
        if not await self._end():
            raise CupolaError("session_not_ready", "It failed.", status=424)
        sandbox = Sandbox("sandbox")
        place = self.admission.try_take(1)
        assert place is not None
        agent = RunningAgent(sandbox, AgentClient(sandbox), place)
        self.alive.add(agent)
        self.awake.add(agent)
        return agent

    async def freeze(self, live: LiveSession, agent: RunningAgent) -> None:
        assert self.in_use == 0 or self.forced
        self.awake.discard(agent)
        if not await self._end():
            self.awake.add(agent)
            raise OSError("it does not freeze")

    def thaw(self, live: LiveSession, agent: RunningAgent) -> None:
        self.awake.add(agent)

    async def stop(self, live: LiveSession, agent: RunningAgent) -> None:
        assert self.in_use == 0 or self.forced
        self.awake.discard(agent)
        await self._end()
        self.alive.discard(agent)
        self.forced = False

    def forget(self, live: LiveSession) -> None:
        self.forgotten += 1


class Race:
    def __init__(self, seed: int, log: SessionLog, group: asyncio.TaskGroup) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.now = 0.0
        self.steps = Steps()
        self.live = LiveSession(SESSION, VERSION, log, self.steps, group.create_task, lambda: self.now)
        self.answers: list[asyncio.Future[None]] = []
        self.requests: list[asyncio.Task[str]] = []

    async def request(self) -> str:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            async with self.live.use("ada") as use:
                if not use.agent.sandbox.exited.done() and not self.steps.forced:
                    assert use.agent in self.steps.awake, "a request was given a sandbox that sleeps"
                self.steps.in_use += 1
                self.answers.append(answered)
                try:
                    await answered
                finally:
                    self.steps.in_use -= 1
                    if answered in self.answers:
                        self.answers.remove(answered)
        except CupolaError as error:
            return error.code
        return "served"

    def complete(self, outcome: bool) -> None:
        if self.steps.pending:
            pending = self.random.choice(self.steps.pending)
            if not pending.done():
                pending.set_result(outcome)

    def answer(self) -> None:
        if self.answers:
            answered = self.random.choice(self.answers)
            if not answered.done():
                answered.set_result(None)

    def act(self) -> None:
        chance = self.random.random()
        if chance < 0.3:
            self.requests.append(asyncio.ensure_future(self.request()))
        elif chance < 0.5:
            self.answer()
        elif chance < 0.7:
            self.complete(self.random.random() < 0.8)
        elif chance < 0.9:
            self.now += self.random.choice((0.0, 1.0, 10.0))
            self.live.rest(1.0, 10.0, 1000.0)
        elif chance < 0.94 and self.requests:
            self.random.choice(self.requests).cancel()
        elif chance < 0.97:
            self.steps.forced = self.steps.forced or self.live.status is not Status.STORED
            self.live.stop_soon()
        elif self.live.agent is not None and not self.live.agent.sandbox.exited.done():
            self.steps.forced = True
            self.live.agent.sandbox.exited.set_result(Exit(1))

    async def run(self, events: int) -> None:
        for _ in range(events):
            self.act()
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while not all(request.done() for request in self.requests):
                self.complete(outcome=True)
                self.answer()
                await asyncio.sleep(0)
            stopping = asyncio.ensure_future(self.live.stop())
            while not stopping.done():
                self.complete(outcome=True)
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert self.live.status is Status.STORED
        assert not self.steps.alive
        assert not self.live.busy
        outcomes = {request.result() for request in self.requests if not request.cancelled()}
        assert outcomes <= {"served", "session_not_ready", "session_stopped"}
        assert self.steps.forgotten > 0 or not self.requests


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SessionLog]:
    log = SessionLog(tmp_path)
    yield log
    log.close()


async def races(log: SessionLog, seeds: range) -> None:
    for seed in seeds:
        async with asyncio.TaskGroup() as group:
            await Race(seed, log, group).run(60)


async def test_races_of_requests_and_timers_give_nobody_a_sleeping_sandbox(
    log: SessionLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL")
    await races(log, range(1000))


async def test_the_races_notice_a_sandbox_that_is_stopped_under_a_request(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveSession, "rest", lambda live, *_: live.stop_soon())
    with pytest.raises(BaseExceptionGroup) as caught:
        await races(log, range(100))
    assert caught.group_contains(AssertionError)


class Started:
    """A live session that has got its sandbox."""

    def __init__(self, log: SessionLog, group: asyncio.TaskGroup) -> None:
        self.steps = Steps()
        self.live = LiveSession(SESSION, VERSION, log, self.steps, group.create_task, lambda: 0.0)

    async def step(self, *, succeeded: bool = True) -> None:
        async with asyncio.timeout(10):
            while not self.steps.pending:
                await asyncio.sleep(0)
            self.steps.pending[0].set_result(succeeded)
            while self.steps.pending:
                await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def tier(self) -> str:
        async with self.live.use("ada") as use:
            return use.tier


def spawned(work: Coroutine[Any, Any, Any], group: asyncio.TaskGroup) -> asyncio.Task[Any]:
    return group.create_task(work)


async def test_a_request_is_told_how_it_found_the_sandbox(log: SessionLog) -> None:
    async with asyncio.TaskGroup() as group:
        started = Started(log, group)
        first = spawned(started.tier(), group)
        await started.step()
        assert await first == "cold"
        assert await started.tier() == "running"
        started.live.rest(1e-9, 0, 0)
        started.live._clock = lambda: 1.0
        started.live.rest(0.5, 0, 0)
        await started.step()
        assert started.live.status is Status.FROZEN
        assert await started.tier() == "frozen"
        assert await started.tier() == "running"
        stopping = spawned(started.live.stop(), group)
        await started.step()
        await stopping


async def test_a_sandbox_that_does_not_freeze_is_left_awake(log: SessionLog, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.TaskGroup() as group:
        started = Started(log, group)
        first = spawned(started.tier(), group)
        await started.step()
        await first
        started.live._clock = lambda: 5.0
        started.live.rest(1, 0, 0)
        await started.step(succeeded=False)
        assert started.live.status is Status.RUNNING
        assert "could not be frozen and stays awake" in caplog.text
        started.live.rest(1, 0, 0)
        assert started.live.status is Status.RUNNING
        stopping = spawned(started.live.stop(), group)
        await started.step()
        await stopping
