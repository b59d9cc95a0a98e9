"""A session in memory: its sandbox if it has one, the requests that wait for it, and the step under way.

There is at most one step at a time. It is begun in the very moment in which it is decided, so a request finds either a
sandbox that nobody is about to freeze or stop, or one whose step it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cupola.domain.errors import CupolaError
from cupola.domain.session import Session
from cupola.domain.version import Version
from cupola.sessions.launcher import RunningAgent
from cupola.sessions.lifecycle import Lifecycle, Status, Step, Target
from cupola.telemetry.output import SessionLog

logger = logging.getLogger(__name__)


class Keeper(Protocol):
    """Who carries the steps out."""

    async def start(self, live: LiveSession) -> RunningAgent:
        """Give the session a sandbox that is ready. Raises CupolaError with the reason."""

    async def freeze(self, live: LiveSession, agent: RunningAgent) -> None:
        """Let the sandbox stand still."""

    def thaw(self, live: LiveSession, agent: RunningAgent) -> None:
        """Let it go on."""

    async def stop(self, live: LiveSession, agent: RunningAgent) -> None:
        """Remove the sandbox, whatever happens; what goes wrong is the keeper's to handle."""

    def forget(self, live: LiveSession) -> None:
        """The session has no sandbox and nobody waits for one."""


@dataclass(frozen=True)
class Use:
    """A running sandbox in a request's hands. `tier` is how the request found it, `waited` in seconds."""

    agent: RunningAgent
    tier: str
    waited: float


class LiveSession:
    """One session while it has a sandbox, gets one or loses one."""

    def __init__(
        self,
        session: Session,
        version: Version,
        log: SessionLog,
        keeper: Keeper,
        spawn: Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session = session
        self.version = version
        self.log = log
        self.agent: RunningAgent | None = None
        self.caller = ""
        self.draining = False
        """Whether it is stopped as soon as no request holds it, so that the next one gets another version."""
        self._keeper = keeper
        self._spawn = spawn
        self._clock = clock
        self._lifecycle = Lifecycle(clock())
        self._waiters: dict[object, asyncio.Future[RunningAgent]] = {}
        self._step: asyncio.Task[Any] | None = None
        self._failure: CupolaError | None = None
        self._stopped: list[asyncio.Future[None]] = []
        self._freezable = True
        self._tier = "running"
        """What the next request finds when the sandbox runs."""

    @property
    def status(self) -> Status:
        return self._lifecycle.status

    @property
    def idle_since(self) -> float:
        """When the last request ended, by the clock given."""
        return self._lifecycle.idle_since

    @property
    def busy(self) -> bool:
        """Whether requests use the sandbox or wait for it."""
        return self._lifecycle.held or self._lifecycle.waiting > 0

    def adopt(self, agent: RunningAgent) -> None:
        """Take over a sandbox that runs already."""
        self._lifecycle.wait()
        self._lifecycle.begin(Step.START)
        self._lifecycle.finish(Step.START, succeeded=True)
        self._lifecycle.give_up(self._clock())
        self._take(agent)
        self._tier = agent.kind

    @contextlib.asynccontextmanager
    async def use(self, caller: str) -> AsyncIterator[Use]:
        """Hold the running sandbox, made or woken if it has to be. Raises CupolaError when that fails."""
        request = object()
        found, began = self.status, time.perf_counter()
        try:
            if found is Status.RUNNING and self.agent is not None:
                self._lifecycle.hold(request, self._clock())
                tier, self._tier = self._tier, "running"
                yield Use(self.agent, tier, 0.0)
                return
            self.caller = caller
            agent = await self._until_running(request)
            tier = "frozen" if found in (Status.FROZEN, Status.FREEZING) else agent.kind
            yield Use(agent, tier, time.perf_counter() - began)
        finally:
            self._lifecycle.release(request, self._clock())
            if self.draining and not self.busy:
                self._lifecycle.stop()
            self._advance()

    async def _until_running(self, request: object) -> RunningAgent:
        waiter: asyncio.Future[RunningAgent] = asyncio.get_running_loop().create_future()
        self._waiters[request] = waiter
        self._lifecycle.wait()
        self._advance()
        try:
            return await waiter
        finally:
            if self._waiters.pop(request, None) is not None:
                self._lifecycle.give_up(self._clock())

    def rest(self, freeze_after: float, stop_after: float, hold_limit: float) -> None:
        """Freeze or stop the sandbox if it has had no requests for long enough; seconds, 0 means never."""
        self._lifecycle.rest(self._clock(), freeze_after if self._freezable else 0, stop_after, hold_limit)
        self._advance()

    async def stop(self) -> None:
        """Stop the sandbox, whatever it does; returns when it is gone. Requests that wait for its start are told."""
        if self.status is Status.STORED:
            return
        stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopped.append(stopped)
        self.stop_soon()
        await stopped

    def stop_soon(self) -> None:
        """Begin to stop the sandbox, whatever it does."""
        if self.status is Status.STARTING and self._step is not None:
            stopped = CupolaError("session_stopped", "The session was stopped while it started.", status=409)
            self._refuse_waiters(stopped)
            self._step.cancel()
        self._lifecycle.stop()
        self._advance()

    def drain(self) -> None:
        """Stop the sandbox as soon as no request uses it."""
        self.draining = True
        if not self.busy:
            self.stop_soon()

    def _advance(self) -> None:
        while self._step is None and (step := self._lifecycle.next_step()) is not None:
            self._lifecycle.begin(step)
            if step is Step.THAW:
                self._keeper.thaw(self, self._running())
                self._lifecycle.finish(step, succeeded=True)
                self._grant()
            else:
                self._step = self._spawn(self._perform(step))
                self._step.add_done_callback(partial(self._finished, step))
        if self._step is None and self._lifecycle.over:
            self._keeper.forget(self)

    async def _perform(self, step: Step) -> bool:
        if step is Step.START:
            return await self._start()
        if step is Step.FREEZE:
            return await self._freeze()
        await self._keeper.stop(self, self._running())
        self.agent = None
        return True

    async def _start(self) -> bool:
        try:
            agent = await self._keeper.start(self)
        except CupolaError as error:
            self._failure = error
            return False
        self._take(agent)
        return True

    async def _freeze(self) -> bool:
        try:
            await self._keeper.freeze(self, self._running())
        except Exception:
            logger.exception("the sandbox of session %s could not be frozen and stays awake", self.session.id)
            self._freezable = False
            return False
        return True

    def _take(self, agent: RunningAgent) -> None:
        self.agent = agent
        self._freezable = True
        agent.sandbox.exited.add_done_callback(lambda _: self._ended(agent))

    def _ended(self, agent: RunningAgent) -> None:
        if agent is self.agent:
            self._lifecycle.ended()
            self._advance()

    def _running(self) -> RunningAgent:
        if self.agent is None:
            raise RuntimeError(f"session {self.session.id} has no sandbox")
        return self.agent

    def _finished(self, step: Step, task: asyncio.Task[bool]) -> None:
        self._step = None
        succeeded = not task.cancelled() and task.exception() is None and task.result()
        if step is Step.STOP and not succeeded:
            # Only a server that is being torn down cuts a stop off; its next start removes what is left.
            return
        if self._failure is not None:
            self._refuse_waiters(self._failure)
            self._failure = None
        self._lifecycle.finish(step, succeeded=succeeded)
        if self.status is Status.RUNNING:
            self._grant()
        if self.status is Status.STORED:
            for stopped in self._stopped:
                if not stopped.done():
                    stopped.set_result(None)
            self._stopped.clear()
        self._advance()

    def _grant(self) -> None:
        """The sandbox runs: it is held for everyone who waited from this moment on, before they even notice."""
        if self._lifecycle.target is not Target.RUNNING:
            return
        for request, waiter in list(self._waiters.items()):
            del self._waiters[request]
            self._lifecycle.give_up(self._clock())
            if not waiter.done():
                self._lifecycle.hold(request, self._clock())
                waiter.set_result(self._running())

    def _refuse_waiters(self, error: CupolaError) -> None:
        for request, waiter in list(self._waiters.items()):
            del self._waiters[request]
            self._lifecycle.give_up(self._clock())
            if not waiter.done():
                waiter.set_exception(error)
