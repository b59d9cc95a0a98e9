"""From a version and an image to a sandbox that is ready: what a smoke start and a session have in common."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cupola.domain.egress import NO_EGRESS, EgressPolicy
from cupola.domain.ids import random_text
from cupola.domain.version import Version
from cupola.images.model import Image
from cupola.sandbox.base import Driver, Sandbox, SandboxError, SandboxSpec, Stream
from cupola.sandbox.http import AgentClient
from cupola.sessions.environment import PORT, sandbox_environment
from cupola.sessions.readiness import NotReady, wait_until_ready


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


@dataclass
class RunningAgent:
    """A sandbox that was ready, and the connections to it. `steps` are names and durations in milliseconds."""

    sandbox: Sandbox
    client: AgentClient
    steps: list[tuple[str, float]] = field(default_factory=list)


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


class Launcher:
    """Starts sandboxes of a driver and waits for them to be ready."""

    def __init__(self, driver: Driver, installation: Installation) -> None:
        self.driver = driver
        self.installation = installation

    async def launch(
        self,
        version: Version,
        image: Image,
        session_id: str,
        session_guid: str,
        directory: Path,
        sink: OutputSink,
    ) -> RunningAgent:
        """Start and wait. `directory` is the session's durable one. Raises StartFailed, leaving nothing behind."""
        egress = await self.installation.egress(version.agent.project)
        spec = self._spec(version, image, session_id, session_guid, directory, sink, egress)
        started = time.perf_counter()
        try:
            sandbox = await self.driver.start(spec, sink.output)
        except SandboxError as error:
            raise StartFailed(f"The sandbox could not be started: {error}.", sink.tail()) from error
        agent = RunningAgent(sandbox, AgentClient(sandbox))
        created = time.perf_counter()
        agent.steps.append(("start", 1000 * (created - started)))
        try:
            await wait_until_ready(sandbox, agent.client, self.installation.startup_timeout)
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
        agent.steps.append(("readiness", 1000 * (time.perf_counter() - created)))
        return agent

    async def stop(self, agent: RunningAgent, grace: float | None = None) -> None:
        """End a sandbox; `grace` in seconds, None for the usual."""
        agent.client.close()
        await self.driver.stop(agent.sandbox.name, self.installation.stop_grace if grace is None else grace)

    def _spec(
        self,
        version: Version,
        image: Image,
        session_id: str,
        session_guid: str,
        directory: Path,
        sink: OutputSink,
        egress: EgressPolicy,
    ) -> SandboxSpec:
        arguments = (*image.config.entrypoint, *image.config.command)
        if not arguments:
            raise StartFailed("The image has neither ENTRYPOINT nor CMD, so there is nothing to run.", sink.tail())
        return SandboxSpec(
            name=f"s-{random_text(20)}",
            layers=image.layers,
            arguments=arguments,
            environment=sandbox_environment(
                version,
                image.config.environment,
                project_endpoint=self.installation.project_endpoint(version.agent.project),
                tenant=self.installation.tenant,
                session_id=session_id,
                session_guid=session_guid,
            ),
            working_directory=image.config.working_directory,
            user=image.config.user,
            home=directory / "home",
            files=directory / "files",
            cpu=version.definition.cpu_cores,
            memory=version.definition.memory_bytes,
            port=PORT,
            egress=egress,
        )
