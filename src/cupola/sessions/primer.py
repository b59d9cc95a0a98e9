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
from cupola.sessions.environment import FILES, HOME, SESSION_GUID, SESSION_ID
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
    """A sandbox whose interpreter waits for a session."""

    version: Version
    image: Image
    agent: RunningAgent
    channel: PrimingChannel
    output: HeldOutput


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
            await report(f"Sessions of this version start cold: {error.reason}", None)
        except StartFailed as error:
            await report(f"Sessions of this version start cold: with an interpreter made ready, {error.message}", None)
        except TimeoutError:
            await report("Sessions of this version start cold: making an interpreter ready took too long.", None)
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
                agent, ready = await self._try(version, image, plan, session, await place())
            except PrimingFailed as error:
                failing.update(error.modules)
                if not error.modules:
                    raise
                continue
            same = agent.sandbox.listening_ports() == ports
            await self._launcher.stop(agent, 0)
            if not same:
                raise PrimingFailed("with an interpreter made ready it listens on other ports than after a cold start.")
            await report(
                f"An interpreter imports {len(plan.modules)} modules ahead, {len(plan.skipped)} not; the agent was then ready "
                f"after {1000 * ready:.0f} ms.",
                began,
            )
            return plan
        raise PrimingFailed("too many of its modules cannot be imported ahead.")

    def _entry_point(self, version: Version, image: Image) -> EntryPoint:
        environment = dict(self._launcher.environment(version, image, None))
        arguments = (*image.config.entrypoint, *image.config.command)
        return find_entry_point(arguments, environment, image.config.working_directory, image.layers)

    async def _record(
        self, version: Version, image: Image, entry_point: EntryPoint, session: SandboxSession, place: Place
    ) -> tuple[Recording, tuple[int, ...]]:
        output = OutputTail()
        arguments = primer_arguments(entry_point)
        agent = await self._launcher.start(version, image, arguments, session, output, place, channel=True)
        channel = _channel(agent)
        try:
            async with asyncio.timeout(RUN_DEADLINE):
                await channel.record(entry_point, (SESSION_ID, SESSION_GUID), (HOME, FILES))
            await self._launcher.wait_until_ready(agent, version, output)
            return channel.recorded(), agent.sandbox.listening_ports()
        finally:
            channel.close()
            await self._launcher.stop(agent, 0)

    async def _try(
        self, version: Version, image: Image, plan: Plan, session: SandboxSession, place: Place
    ) -> tuple[RunningAgent, float]:
        primed = await self.prime(version, image, plan, place)
        began = time.perf_counter()
        agent = await self.hand_over(primed, session, OutputTail())
        return agent, time.perf_counter() - began

    async def prime(self, version: Version, image: Image, plan: Plan, place: Place) -> PrimedSandbox:
        """A sandbox with an interpreter that has imported what it may. Raises StartFailed and PrimingFailed."""
        entry_point = await asyncio.to_thread(self._entry_point, version, image)
        output = HeldOutput()
        arguments = primer_arguments(entry_point)
        agent = await self._launcher.start(version, image, arguments, None, output, place, channel=True)
        channel = _channel(agent)
        try:
            environment = dict(self._launcher.environment(version, image, None))
            async with asyncio.timeout(PRIME_DEADLINE):
                await channel.prime(entry_point, plan, environment)
        except BaseException:
            channel.close()
            await self._launcher.stop(agent, 0)
            raise
        agent.kind = "primed"
        return PrimedSandbox(version, image, agent, channel, output)

    async def hand_over(self, primed: PrimedSandbox, session: SandboxSession, sink: OutputSink) -> RunningAgent:
        """Give a primed sandbox to a session; returns once the agent is ready.

        Raises StartFailed and PrimingFailed, after which the sandbox is gone.
        """
        began = time.perf_counter()
        agent = primed.agent
        primed.output.pass_on(sink)
        try:
            await self._give(agent, session)
            environment = dict(self._launcher.environment(primed.version, primed.image, session))
            async with asyncio.timeout(RUN_DEADLINE):
                await primed.channel.run(environment)
        except BaseException:
            await self.discard(primed)
            raise
        agent.steps = [("hand over", 1000 * (time.perf_counter() - began))]
        await self._launcher.wait_until_ready(agent, primed.version, sink)
        return agent

    async def discard(self, primed: PrimedSandbox) -> None:
        """Remove a sandbox that nobody gets."""
        primed.channel.close()
        await self._launcher.stop(primed.agent, 0)

    async def _give(self, agent: RunningAgent, session: SandboxSession) -> None:
        try:
            await self._launcher.driver.attach(
                agent.sandbox.name, session.directory / "home", session.directory / "files"
            )
        except SandboxError as error:
            raise PrimingFailed(f"the session's directories could not be put into the sandbox: {error}") from error


def _channel(agent: RunningAgent) -> PrimingChannel:
    channel = agent.sandbox.channel
    if channel is None:
        raise PrimingFailed("the sandbox has no channel")
    return PrimingChannel(channel)
