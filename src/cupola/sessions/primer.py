"""Interpreters made ready ahead: learn what an agent imports, import it before anyone asks, and hand the sandbox over.

A primed sandbox has no session yet. It gets one when it is claimed: the directories are mounted into it, and its waiting
interpreter is told the environment and goes on to run the image's own entry point.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cupola.domain.version import Version
from cupola.images.model import Image
from cupola.sandbox.base import SandboxError, Stream
from cupola.sessions.admission import Place
from cupola.sessions.environment import FILES, HOME, SESSION_VARIABLES
from cupola.sessions.launcher import Launcher, OutputSink, RunningAgent, SandboxSession, StartFailed
from cupola.sessions.priming.client import PrimingChannel, PrimingFailed, primer_arguments
from cupola.sessions.priming.entry_point import EntryPoint, NotPrimable, find_entry_point
from cupola.sessions.priming.plan import Plan, Recording, make_plan
from cupola.storage import agents
from cupola.storage.database import Database
from cupola.telemetry.output import OutputTail

PRIME_DEADLINE = 60.0
RUN_DEADLINE = 10.0
HELD_OUTPUT = 64 * 1024
"""Bytes of output kept for the log of a session that is not known yet; the oldest go first."""
_NOT_BEGUN = f"the interpreter did not begin within {RUN_DEADLINE:g} s"
ATTEMPTS = 3
"""How often a plan is made smaller when some module of it cannot be imported ahead."""

Report = Callable[[str, float | None], Awaitable[None]]
"""Takes a line for the version's event log, and when it began by `perf_counter`."""


class HeldOutput:
    """What a sandbox prints before its session is known, and afterwards the session's own log."""

    def __init__(self) -> None:
        self._held: deque[tuple[Stream, bytes]] = deque()
        self._size = 0
        self._sink: OutputSink | None = None

    def output(self, stream: Stream, data: bytes) -> None:
        """Take what was printed."""
        if self._sink is not None:
            self._sink.output(stream, data)
            return
        self._held.append((stream, data))
        self._size += len(data)
        while self._size > HELD_OUTPUT:
            self._size -= len(self._held.popleft()[1])

    def tail(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        if self._sink is not None:
            return self._sink.tail()
        lines = OutputTail()
        for stream, data in self._held:
            lines.output(stream, data)
        return lines.tail()

    def pass_on(self, sink: OutputSink) -> None:
        """Everything goes here, what is held as well."""
        self._sink = sink
        while self._held:
            sink.output(*self._held.popleft())


@dataclass(eq=False)
class PrimedSandbox:
    """A sandbox whose interpreter waits for a session. `failed` are modules that could not be imported ahead."""

    version: Version
    image: Image
    agent: RunningAgent
    channel: PrimingChannel
    output: HeldOutput
    failed: frozenset[str]


class Primer:
    """Learns, primes and hands over."""

    def __init__(self, launcher: Launcher, database: Database) -> None:
        self._launcher = launcher
        self._database = database

    async def plan(self, version: Version) -> Plan | None:
        """What interpreters of a version import ahead; None when they are not made ready."""
        if not version.definition.primes or not self._launcher.driver.can_attach:
            return None
        kept = await self._database.read(lambda connection: agents.priming_plan(connection, version.key))
        return None if kept is None else Plan.from_json(kept)

    async def learn(
        self,
        version: Version,
        image: Image,
        session: SandboxSession,
        place: Callable[[], Awaitable[Place]],
        report: Report,
    ) -> None:
        """Record what the agent imports, try a primed start, and keep the plan when that goes as a cold one does.

        Tells by `report` what was found, and why interpreters of this version are not made ready when that is so.
        """
        try:
            plan = await self._learn(version, image, session, place, report)
        except (NotPrimable, PrimingFailed) as error:
            await report(f"Sessions of this version start cold: {error.reason.removesuffix('.')}.", None)
        except StartFailed as error:
            await report(f"Sessions of this version start cold, as the trial failed: {error.message}", None)
        else:
            content = plan.to_json()
            await self._database.write(lambda connection: agents.set_priming_plan(connection, version.key, content))

    async def _learn(
        self,
        version: Version,
        image: Image,
        session: SandboxSession,
        place: Callable[[], Awaitable[Place]],
        report: Report,
    ) -> Plan:
        if not self._launcher.driver.can_attach:
            raise NotPrimable("the sandboxes of this server cannot be given to a session after their start.")
        entry_point = await asyncio.to_thread(self._entry_point, version, image)
        began = time.perf_counter()
        recording, ports = await self._record(version, image, entry_point, session, await place())
        failing: set[str] = set()
        for _ in range(ATTEMPTS):
            plan = make_plan(recording, failing)
            try:
                primed = await self.prime(version, image, plan, await place())
            except PrimingFailed as error:
                failing.update(error.modules)
                if not error.modules:
                    raise
                continue
            if primed.failed:
                await self.discard(primed)
                failing.update(primed.failed)
                continue
            ready = await self._try(primed, session, ports)
            await report(
                f"An interpreter imports {len(plan.modules)} modules ahead, {len(plan.skipped)} not; the agent was then ready "
                f"after {1000 * ready:.0f} ms.",
                began,
            )
            return plan
        raise PrimingFailed("too many of its modules cannot be imported ahead")

    async def _start(
        self,
        version: Version,
        image: Image,
        entry_point: EntryPoint,
        session: SandboxSession | None,
        sink: OutputSink,
        place: Place,
    ) -> tuple[RunningAgent, PrimingChannel]:
        """A sandbox with an interpreter that waits to be told what to do, and the channel to it. Raises StartFailed."""
        arguments = primer_arguments(entry_point)
        agent = await self._launcher.start(version, image, arguments, session, sink, place, channel=True)
        if agent.sandbox.channel is None:
            raise RuntimeError("a driver that can attach gave no channel")
        return agent, PrimingChannel(agent.sandbox.channel)

    def _entry_point(self, version: Version, image: Image) -> EntryPoint:
        environment = dict(self._launcher.environment(version, image, None))
        arguments = (*image.config.entrypoint, *image.config.command)
        return find_entry_point(arguments, environment, image.config.working_directory, image.layers)

    async def _record(
        self, version: Version, image: Image, entry_point: EntryPoint, session: SandboxSession, place: Place
    ) -> tuple[Recording, tuple[int, ...]]:
        output = OutputTail()
        agent, channel = await self._start(version, image, entry_point, session, output, place)
        try:
            async with asyncio.timeout(RUN_DEADLINE):
                await channel.record(entry_point, SESSION_VARIABLES, (HOME, FILES))
            await self._launcher.wait_until_ready(agent, version, output)
            return channel.recorded(), agent.sandbox.listening_ports()
        except TimeoutError as error:
            raise PrimingFailed(_NOT_BEGUN) from error
        finally:
            channel.close()
            await self._launcher.stop(agent, 0)

    async def _try(self, primed: PrimedSandbox, session: SandboxSession, ports: tuple[int, ...]) -> float:
        """Start the agent in a primed sandbox; gives the seconds until it was ready. Raises PrimingFailed and StartFailed."""
        output = OutputTail()
        began = time.perf_counter()
        try:
            unusable = await self._run(primed, session, output)
            if unusable is not None:
                raise PrimingFailed(f"what was imported ahead could not be used. {unusable}")
            await self._launcher.wait_until_ready(primed.agent, primed.version, output)
            ready = time.perf_counter() - began
            if primed.agent.sandbox.listening_ports() != ports:
                raise PrimingFailed("with an interpreter made ready it listens on other ports than after a cold start")
        finally:
            await self.discard(primed)
        return ready

    async def prime(self, version: Version, image: Image, plan: Plan, place: Place) -> PrimedSandbox:
        """A sandbox with an interpreter that has imported what it may. Raises StartFailed and PrimingFailed."""
        try:
            entry_point = await asyncio.to_thread(self._entry_point, version, image)
        except BaseException:
            place.give_back()
            raise
        output = HeldOutput()
        agent, channel = await self._start(version, image, entry_point, None, output, place)
        try:
            environment = dict(self._launcher.environment(version, image, None))
            async with asyncio.timeout(PRIME_DEADLINE):
                done = await channel.prime(entry_point, plan, environment)
        except BaseException as error:
            channel.close()
            await self._launcher.stop(agent, 0)
            if isinstance(error, TimeoutError):
                raise PrimingFailed(f"its imports took longer than {PRIME_DEADLINE:g} s") from error
            raise
        agent.kind = "primed"
        return PrimedSandbox(version, image, agent, channel, output, frozenset(done.skipped))

    async def hand_over(self, primed: PrimedSandbox, session: SandboxSession, sink: OutputSink) -> RunningAgent:
        """Give a primed sandbox to a session; returns once the agent is ready.

        An interpreter that cannot use what it imported has started itself anew: the agent is then of the kind `cold`, and
        `sink` is told why. Raises StartFailed and PrimingFailed, after which the sandbox is gone.
        """
        agent = primed.agent
        with self._launcher.waited_for():
            try:
                began = time.perf_counter()
                unusable = await self._run(primed, session, sink)
                agent.steps = [("hand over", 1000 * (time.perf_counter() - began))]
                if unusable is not None:
                    agent.kind = "cold"
                    text = f"What was imported ahead could not be used, so it starts cold. {unusable}.\n"
                    sink.output("status", text.encode())
                await self._launcher.wait_until_ready(agent, primed.version, sink)
            except BaseException:
                await self.discard(primed)
                raise
        return agent

    async def _run(self, primed: PrimedSandbox, session: SandboxSession, sink: OutputSink) -> str | None:
        """Let the entry point run for a session; gives why what was imported ahead was of no use, if it was not."""
        primed.output.pass_on(sink)
        environment = dict(self._launcher.environment(primed.version, primed.image, session))
        try:
            async with asyncio.timeout(RUN_DEADLINE):
                await self._launcher.driver.attach(
                    primed.agent.sandbox.name, session.directory / "home", session.directory / "files"
                )
                unusable = (await primed.channel.run(environment)).cold
        except SandboxError as error:
            raise PrimingFailed(f"the session's directories could not be put into the sandbox: {error}") from error
        except TimeoutError as error:
            raise PrimingFailed(_NOT_BEGUN) from error
        # It comes from inside the sandbox and must stay one line.
        return None if unusable is None else " ".join(unusable.split())

    async def discard(self, primed: PrimedSandbox) -> None:
        """Remove a sandbox that nobody gets."""
        primed.channel.close()
        await self._launcher.stop(primed.agent, 0)
