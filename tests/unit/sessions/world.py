"""A platform without Linux: a real database, real loopback connections, sandboxes of the `fake` driver."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from sqlalchemy import Connection

from cupola.domain.definition import parse_definition
from cupola.domain.egress import NO_EGRESS
from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal
from cupola.domain.session import Session
from cupola.domain.version import Agent, Version, VersionStatus
from cupola.images.failures import invalid_image
from cupola.images.model import Image, ImageConfig
from cupola.images.reference import Reference
from cupola.images.store import ImageStore
from cupola.sandbox.base import Driver, Exit, Isolation, Output, Sandbox, SandboxError, SandboxSpec
from cupola.sandbox.fake import FakeDriver, FakeProcess, Program
from cupola.sessions.admission import Admission, Limits
from cupola.sessions.egress import EgressPolicies
from cupola.sessions.launcher import Installation, Launcher
from cupola.sessions.manager import Rest, SessionManager
from cupola.sessions.pool import WarmPool
from cupola.sessions.primer import Primer
from cupola.sessions.provisioner import Provisioner
from cupola.sessions.references import References
from cupola.sessions.volumes import LocalVolumes
from cupola.storage import agents, sessions
from cupola.storage.database import Database
from tests.unit.sandbox.servers import LoopbackSandbox, Peer, Request, answer

ADA = Principal("ada-id", "ada", administrator=False)
BOB = Principal("bob-id", "bob", administrator=False)
ROOT = Principal("root-id", "administrator", administrator=True)
NO_LIMITS = Limits()
NEVER_FROZEN = Rest(freeze_after=0)
TENANT = "5a0e3a52-0000-4000-8000-000000000000"

Behaviour = Callable[[Peer, Request], Awaitable[None]]
"""Answers one request whose head was read."""


async def echo(peer: Peer, head: Request) -> None:
    """Answer with the body of the request."""
    await peer.send(answer(await peer.body(head), b"200 OK", b"content-type: application/json"))


def program(behave: Behaviour = echo, *, readiness: bytes = b"200 OK") -> Program:
    """An agent that is ready and answers requests. It dies when a behaviour raises something."""

    async def run(process: FakeProcess) -> int:
        async def connection(peer: Peer) -> None:
            try:
                while True:
                    head = await peer.head()
                    if head.target == b"/readiness":
                        await peer.send(answer(b"{}", readiness))
                    else:
                        await behave(peer, head)
            except (asyncio.IncompleteReadError, ConnectionError):
                # The platform has closed the connection.
                return
            finally:
                peer.writer.close()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            group.create_task(connection(Peer(reader, writer)))

        async with asyncio.TaskGroup() as group:
            server = await asyncio.start_server(connected, "127.0.0.1", 0)
            process.port = server.sockets[0].getsockname()[1]
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                server.close()
        return 0

    return run


def exits(code: int, *printed: bytes) -> Program:
    """A container that prints something and ends."""

    async def run(process: FakeProcess) -> int:
        for data in printed:
            process.print("stderr", data)
        return code

    return run


async def silent(process: FakeProcess) -> int:
    """A container that runs and listens nowhere."""
    process.print("stdout", b"I do nothing.\n")
    await asyncio.get_running_loop().create_future()
    return 0


class Die(Exception):
    """Raised by a behaviour to end its sandbox."""


def digest_of(name: str) -> str:
    return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


class Images(ImageStore):
    """Images whose names are those of programs: `registry.example.com/serve:1` runs the program `serve`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.stored: dict[str, Image] = {}
        self.salt = ""
        self.missing: set[str] = set()

    def store(self, name: str, *, command: tuple[str, ...] | None = None) -> str:
        """Have an image; returns its digest."""
        digest = digest_of(name + self.salt)
        config = ImageConfig(
            entrypoint=(name,) if command is None else command,
            command=(),
            environment=(("FROM_IMAGE", "image"),),
            working_directory="/app",
            user="agent",
            stop_signal=None,
            labels=(),
        )
        self.stored[digest] = Image(digest, (), config, 1_500_000)
        return digest

    async def resolve(self, reference: Reference) -> str:
        name = (reference.repository or reference.path).rpartition("/")[2]
        if name in self.missing:
            raise invalid_image(f"There is no image {reference}.")
        return digest_of(name + self.salt)

    async def pull(self, reference: Reference, digest: str, report: Callable[[str, str], None]) -> Image:
        report("pull", f"Reading {reference}")
        report("unpack", "Unpacked 1 layer")
        return self.stored[self.store((reference.repository or reference.path).rpartition("/")[2])]

    async def load(self, digest: str) -> Image | None:
        return self.stored.get(digest)


class OutOfMemoryDriver(Driver):
    """Every sandbox is killed at once because it used too much memory."""

    isolation = Isolation(filesystem=False, processes=False, network=False, resource_limits=False)
    can_attach = False

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def make(self, spec: SandboxSpec, output: Output) -> Sandbox:
        output("stdout", b"I am hungry.\n")
        sandbox = LoopbackSandbox(1)
        sandbox.exited.set_result(Exit(-9, out_of_memory=True))
        return sandbox

    async def remove(self, name: str, grace: float) -> None:
        return

    def hurry(self) -> None:
        return

    async def names(self) -> frozenset[str]:
        return frozenset()

    async def freeze(self, name: str) -> None:
        return

    def thaw(self, name: str) -> None:
        return

    async def attach(self, name: str, home: Path, files: Path) -> None:
        raise SandboxError("not here")


class World:
    """The platform's parts, running once it is entered."""

    def __init__(
        self,
        directory: Path,
        database: Database,
        driver: Driver | None = None,
        *,
        limits: Limits = NO_LIMITS,
        rest: Rest = NEVER_FROZEN,
        pool_size: int = 0,
    ) -> None:
        self.directory = directory
        self.database = database
        self.programs: dict[str, Program] = {"serve": program(), "silent": silent}
        self.driver = driver or FakeDriver(self.programs)
        self.images = Images(directory / "images")
        self.egress = EgressPolicies(database, NO_EGRESS, lambda: self.now)
        self.installation = Installation(
            TENANT, lambda project: f"https://localhost/api/projects/{project}", 20.0, 0.0, self.egress.policy
        )
        self.launcher = Launcher(self.driver, self.installation, Admission(limits))
        self.now = 1_800_000_000.0
        self.age = 0.0
        """Seconds by which the manager's monotonic clock is ahead."""
        self.volumes = LocalVolumes(directory / "volumes")
        self.logs = directory / "logs"
        self.primer = Primer(self.launcher, database)
        self.pool = WarmPool(self.launcher, self.primer, self.images, self.volumes, self.logs, pool_size)
        self.manager = SessionManager(
            database,
            self.images,
            self.launcher,
            self.primer,
            self.pool,
            self.volumes,
            self.logs,
            rest,
            lambda: self.now,
            lambda: time.monotonic() + self.age,
        )
        self.provisioner = Provisioner(
            database, self.images, self.launcher, self.primer, LocalVolumes(directory / "trials"), 2,
            self.manager.version_activated, lambda: self.now,
        )  # fmt: skip
        self.references = References(database, lambda: self.now)
        self.stopping = asyncio.Event()
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> World:
        self._running = [
            asyncio.create_task(self.manager.run(self.stopping)),
            asyncio.create_task(self.provisioner.run(self.stopping)),
            asyncio.create_task(self.pool.run(self.stopping)),
            asyncio.create_task(self.references.run(self.stopping)),
        ]
        await self.until(lambda: self.manager._group is not None and self.provisioner._group is not None)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop as the server does; raises what went wrong in the background."""
        self.stopping.set()
        async with asyncio.timeout(20):
            await asyncio.gather(*self._running)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that happens in the background; fails when a background task has."""
        async with asyncio.timeout(20):
            while not condition():
                for task in self._running:
                    if task.done() and not self.stopping.is_set():
                        task.result()
                await asyncio.sleep(0.001)

    async def until_read(self, read: Callable[[], Awaitable[object]], expected: object) -> None:
        """Wait until something that is written in the background can be read."""
        async with asyncio.timeout(20):
            while await read() != expected:
                await asyncio.sleep(0.001)

    def definition(self, image: str = "serve", **fields: object) -> dict[str, object]:
        return {"kind": "hosted", "image": f"registry.example.com/{image}:1", "cpu": "1", "memory": "2Gi", **fields}

    async def add(
        self,
        name: str = "echo",
        image: str = "serve",
        status: VersionStatus | None = VersionStatus.ACTIVE,
        **fields: object,
    ) -> Version:
        """A version of an agent, made behind the platform's back. Its image is stored."""
        digest = self.images.store(image)
        definition = parse_definition(self.definition(image, **fields))

        def write(connection: Connection) -> Version:
            agent = agents.find_agent(connection, "default", name) or agents.create_agent(
                connection, "default", name, 1
            )
            made = agents.create_version(connection, agent, definition, {}, None, 1)
            if status is not None and status is not VersionStatus.CREATING:
                agents.set_digest(connection, made.key, digest)
                agents.move_version(connection, made.key, status, "Broken", "It is broken.")
            found = agents.version_by_key(connection, made.key)
            assert found is not None
            return found

        return await self.database.write(write)

    async def version(self, version: Version) -> Version:
        """A version as it is now."""
        found = await self.database.read(lambda connection: agents.version_by_key(connection, version.key))
        assert found is not None
        return found

    async def session(self, version: Version, session_id: str = "session-1", caller: Principal = ADA) -> Session:
        return (await self.manager.resolve(version.agent, session_id, version.number, caller))[0]

    async def stored_session(self, agent: Agent, session_id: str) -> Session | None:
        return await self.database.read(lambda connection: sessions.find_session(connection, agent.key, session_id))

    async def ask(self, session: Session, version: Version, body: bytes = b"hello") -> bytes:
        """One request to a session's sandbox."""
        async with (
            self.manager.running(session, version) as use,
            await use.agent.client.request(b"POST", b"/", [], body) as response,
        ):
            return await response.read(1 << 20)

    async def sandboxes(self) -> int:
        return len(await self.driver.names())


@contextlib.asynccontextmanager
async def refused(code: str, status: int) -> AsyncIterator[list[CupolaError]]:
    """The block must raise this error; it is put into the list."""
    found: list[CupolaError] = []
    try:
        yield found
    except CupolaError as error:
        found.append(error)
    assert [(error.code, error.status) for error in found] == [(code, status)]
