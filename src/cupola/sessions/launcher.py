"""From a version and an image to a sandbox that is ready: what smoke starts, sessions and the pool have in common."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from cupola.domain.egress import NO_EGRESS, EgressPolicy
from cupola.domain.ids import random_text
from cupola.domain.version import Version
from cupola.images.model import Image
from cupola.sandbox.base import Driver, Sandbox, SandboxError, SandboxSpec, Stream, unbroken
from cupola.sandbox.http import AgentClient
from cupola.sessions.admission import Admission, Place
from cupola.sessions.environment import PORT, Hosting, sandbox_environment
from cupola.sessions.readiness import NotReady, wait_until_ready

logger = logging.getLogger(__name__)


class OutputSink(Protocol):
    """Where a sandbox's output goes, and where its last lines can be read."""

    def output(self, stream: Stream, data: bytes) -> None:
        """Take what was printed."""

    def tail(self) -> tuple[str, ...]:
        """The last lines, oldest first."""


class StartFailed(Exception):
    """A sandbox could not be made or did not become ready. `tail` holds the last lines it printed."""

    def __init__(self, message: str, tail: tuple[str, ...], out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.tail = tail
        self.out_of_memory = out_of_memory

    def describe(self, lines: int = 10) -> str:
        """The reason followed by the container's last lines."""
        if not self.tail:
            return f"{self.message} The container printed nothing."
        return f"{self.message} Its last output:\n" + "\n".join(self.tail[-lines:])


@dataclass(frozen=True)
class SandboxSession:
    """Whose a sandbox is: the session's id and guid, and the directory of its durable files."""

    id: str
    guid: str
    directory: Path


@dataclass(eq=False)
class RunningAgent:
    """A sandbox, and the connections to it. `steps` are names and durations in milliseconds; `queued` is how many seconds it
    waited for its place; `kind` says how it was started."""

    sandbox: Sandbox
    client: AgentClient
    place: Place
    kind: Literal["cold", "started", "primed"] = "cold"
    queued: float = 0.0
    steps: list[tuple[str, float]] = field(default_factory=list)

    def describe(self) -> str:
        """That it is ready and what that took, for the session's log."""
        took = ", ".join(f"{step} {duration:.0f} ms" for step, duration in self.steps)
        return f"The sandbox is ready ({took})."


async def no_egress(project: str) -> EgressPolicy:
    """The policy of every project where nothing else is said."""
    return NO_EGRESS


@dataclass(frozen=True)
class Installation:
    """What sandboxes are told about the platform they run on."""

    tenant: str
    project_endpoint: Callable[[str], str]
    startup_timeout: float
    stop_grace: float
    egress: Callable[[str], Awaitable[EgressPolicy]] = no_egress
    hosting: Hosting | None = None


class Launcher:
    """Starts sandboxes of a driver and waits for them to be ready."""

    def __init__(self, driver: Driver, installation: Installation, admission: Admission) -> None:
        self.driver = driver
        self.installation = installation
        self.admission = admission
        self.starting = 0
        """How many sandboxes that somebody waits for are being started right now."""
        self.idle: Callable[[], None] = lambda: None
        """Called when there is none of these any more."""
        self._leftovers: list[RunningAgent] = []

    @contextlib.contextmanager
    def waited_for(self) -> Iterator[None]:
        """Around a start that somebody waits for."""
        self.starting += 1
        try:
            yield
        finally:
            self.starting -= 1
            if not self.starting:
                self.idle()

    async def launch(
        self, version: Version, image: Image, session: SandboxSession, sink: OutputSink, place: Place
    ) -> RunningAgent:
        """Start the image's entry point and wait. Raises StartFailed, leaving nothing behind; the place is then given back."""
        with self.waited_for():
            arguments = self._entry_point(image, place)
            agent = await self.start(version, image, arguments, session, sink, place)
            await self.wait_until_ready(agent, version, sink)
        return agent

    def _entry_point(self, image: Image, place: Place) -> tuple[str, ...]:
        arguments = (*image.config.entrypoint, *image.config.command)
        if not arguments:
            place.give_back()
            raise StartFailed("The image has neither ENTRYPOINT nor CMD, so there is nothing to run.", ())
        return arguments

    async def start(
        self,
        version: Version,
        image: Image,
        arguments: tuple[str, ...],
        session: SandboxSession | None,
        sink: OutputSink,
        place: Place,
        *,
        channel: bool = False,
    ) -> RunningAgent:
        """Start a program of the image. Without a session it has neither files nor the session's variables.

        Raises StartFailed, leaving nothing behind; the place is then given back.
        """
        began = time.perf_counter()
        try:
            egress = await self.installation.egress(version.agent.project)
            spec = self._spec(version, image, arguments, session, channel, egress)
            sandbox = await self.driver.start(spec, sink.output)
        except SandboxError as error:
            place.give_back()
            raise StartFailed(f"The sandbox could not be started: {error}.", sink.tail()) from error
        except BaseException:
            place.give_back()
            raise
        agent = RunningAgent(sandbox, AgentClient(sandbox), place)
        agent.steps.append(("start", 1000 * (time.perf_counter() - began)))
        return agent

    async def wait_until_ready(self, agent: RunningAgent, version: Version, sink: OutputSink) -> None:
        """Returns once the agent answers `GET /readiness`. Raises StartFailed, after which the sandbox is gone."""
        began = time.perf_counter()
        try:
            await wait_until_ready(agent.sandbox, agent.client, self.installation.startup_timeout)
        except NotReady as error:
            await self.stop(agent, 0)
            message = str(error)
            if error.out_of_memory:
                limit = version.definition.memory
                message = f"{message} The limit of the definition is memory: {limit}; give it more."
            raise StartFailed(message, sink.tail(), error.out_of_memory) from error
        except BaseException:
            await self.stop(agent, 0)
            raise
        agent.steps.append(("readiness", 1000 * (time.perf_counter() - began)))

    async def stop(self, agent: RunningAgent, grace: float | None = None) -> None:
        """End a sandbox; `grace` in seconds, None for the usual. One that resists keeps its place and is tried again later."""
        agent.client.close()
        # To its end even when the caller is cancelled: the place of a sandbox that is gone is free.
        await unbroken(self._stop(agent, self.installation.stop_grace if grace is None else grace))

    async def _stop(self, agent: RunningAgent, grace: float) -> None:
        try:
            await self.driver.stop(agent.sandbox.name, grace)
        except Exception:
            logger.exception("the sandbox %s could not be removed; it is tried again", agent.sandbox.name)
            self._leftovers.append(agent)
            return
        agent.place.give_back()

    async def stop_leftovers(self) -> None:
        """Try again to remove the sandboxes that resisted."""
        leftovers, self._leftovers = self._leftovers, []
        for agent in leftovers:
            await self.stop(agent, 0)

    def environment(
        self, version: Version, image: Image, session: SandboxSession | None
    ) -> tuple[tuple[str, str], ...]:
        """The variables of a sandbox, without those of the session when there is none yet."""
        return sandbox_environment(
            version,
            image.config.environment,
            project_endpoint=self.installation.project_endpoint(version.agent.project),
            tenant=self.installation.tenant,
            session_id=None if session is None else session.id,
            session_guid=None if session is None else session.guid,
            hosting=self.installation.hosting,
        )

    def _spec(
        self,
        version: Version,
        image: Image,
        arguments: tuple[str, ...],
        session: SandboxSession | None,
        channel: bool,
        egress: EgressPolicy,
    ) -> SandboxSpec:
        return SandboxSpec(
            name=f"s-{random_text(20)}",
            layers=image.layers,
            arguments=arguments,
            environment=self.environment(version, image, session),
            working_directory=image.config.working_directory,
            user=image.config.user,
            home=None if session is None else session.directory / "home",
            files=None if session is None else session.directory / "files",
            cpu=version.definition.cpu_cores,
            memory=version.definition.memory_bytes,
            port=PORT,
            channel=channel,
            egress=egress,
            authority="" if self.installation.hosting is None else self.installation.hosting.authority,
        )
