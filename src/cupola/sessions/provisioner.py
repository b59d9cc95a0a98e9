"""From a posted version to an active one: resolve, pull, unpack, try once. Every step is a line of the version's event log.

Provisioning may be cut off at any point: it is simply done again, from its beginning, by the next start of the platform.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection

from cupola.domain.errors import CupolaError
from cupola.domain.ids import new_guid, new_session_id
from cupola.domain.version import Version, VersionEvent, VersionStatus
from cupola.images.model import Image, Images
from cupola.images.reference import parse_reference
from cupola.sessions.admission import Place
from cupola.sessions.launcher import Launcher, SandboxSession, StartFailed
from cupola.sessions.primer import Primer
from cupola.sessions.volumes import Volumes
from cupola.storage import agents
from cupola.storage.database import Database
from cupola.storage.sessions import new_session_guid
from cupola.telemetry.output import OutputTail

logger = logging.getLogger(__name__)

SERVED_PROTOCOLS = ("responses", "invocations")
PROVISIONER = "provisioner"
"""The caller in whose name smoke starts wait for a sandbox."""


class Provisioner:
    """Works through versions that are `creating`, a few at a time. `trials` are for the smoke starts' files; `activated` is
    told of each version that has become active."""

    def __init__(
        self,
        database: Database,
        images: Images,
        launcher: Launcher,
        primer: Primer,
        trials: Volumes,
        concurrency: int,
        activated: Callable[[Version], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._images = images
        self._launcher = launcher
        self._primer = primer
        self._trials = trials
        self._slots = asyncio.Semaphore(max(1, concurrency))
        self._activated = activated
        self._clock = clock
        self._pinning = asyncio.Lock()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self, stopping: asyncio.Event) -> None:
        """Provision what a previous process left, then what is asked for, until `stopping` is set."""
        await asyncio.to_thread(self._trials.remove_all_but, ())
        async with asyncio.TaskGroup() as group:
            self._group = group
            for version in await self._database.read(
                lambda connection: agents.versions_with_status(connection, VersionStatus.CREATING)
            ):
                self.submit(version)
            self.remove_unused_images()
            await stopping.wait()
            for task in list(self._tasks.values()):
                task.cancel()

    def remove_unused_images(self) -> None:
        """Free the disk of images that no version uses any more, in the background."""
        if self._group is None:
            raise RuntimeError("the provisioner is not running")
        self._group.create_task(self._remove_unused_images(), name="remove unused images")

    async def _remove_unused_images(self) -> None:
        try:
            async with self._pinning:
                await self._images.prune(await self._database.read(agents.used_digests))
        except Exception:
            logger.exception("removing unused images failed; the next removal tries again")

    def submit(self, version: Version) -> None:
        """Provision a version in the background. The same version is never worked on twice at once."""
        if self._group is None:
            raise RuntimeError("the provisioner is not running")
        if version.key in self._tasks:
            return
        task = self._group.create_task(self._provision(version), name=f"provision {version.name}")
        self._tasks[version.key] = task
        task.add_done_callback(lambda _: self._tasks.pop(version.key, None))

    async def cancel(self, version_key: int) -> None:
        """Stop working on a version; returns when nothing of it runs any more."""
        task = self._tasks.get(version_key)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _provision(self, version: Version) -> None:
        async with self._slots:
            try:
                await self._bring_to_an_end(version)
            except Exception:
                # Not even the failure could be recorded, because the disk is full, say.
                logger.exception("%s stays creating; the next start of the server provisions it again", version.name)

    async def _bring_to_an_end(self, version: Version) -> None:
        """Active or failed."""
        log = _EventLog(self._database, version.key, self._clock)
        try:
            await self._note_what_is_not_served(version, log)
            image = await self._fetch(version, log)
            await self._try(version, image, log)
        except CupolaError as error:
            await self._fail(version, log, error.code, error.message)
            return
        except Exception:
            reference = new_guid()
            logger.exception("provisioning %s failed unexpectedly, reference %s", version.name, reference)
            message = f"An unexpected error happened; the server's log has it under the reference {reference}."
            await self._fail(version, log, "ProvisioningError", message)
            return
        await log.add("active", f"Version {version.name} is ready to serve requests.", None)
        await self._move(version, VersionStatus.ACTIVE)
        current = await self._database.read(lambda connection: agents.version_by_key(connection, version.key))
        if current is not None and current.status is VersionStatus.ACTIVE:
            self._activated(current)

    async def _note_what_is_not_served(self, version: Version, log: _EventLog) -> None:
        definition = version.definition
        for protocol in dict.fromkeys(entry.protocol for entry in definition.protocols):
            if protocol not in SERVED_PROTOCOLS:
                await log.add("note", f"The protocol {protocol} is declared, but this server does not serve it.", None)
        if definition.registry_connection_id is not None:
            await log.add("note", "registry_connection_id is not used: this server has no connections yet.", None)

    async def _fetch(self, version: Version, log: _EventLog) -> Image:
        reference = parse_reference(version.definition.image)
        started = time.perf_counter()
        digest = version.digest or await self._images.resolve(reference)
        await log.add("resolve", f"{reference} is {digest}", started)
        # Not while unused images are being removed: from here on this one is used.
        async with self._pinning:
            await self._database.write(lambda connection: agents.set_digest(connection, version.key, digest))
        started = time.perf_counter()
        messages: list[tuple[str, str, float]] = []
        image = await self._images.pull(
            reference, digest, lambda step, message: messages.append((step, message, self._clock()))
        )
        for step, message, at in messages:
            await log.add(step, message, None, at)
        await log.add("image", f"The image is here: {image.size / 1e6:.1f} MB in {len(image.layers)} layers.", started)
        return image

    async def _try(self, version: Version, image: Image, log: _EventLog) -> None:
        """Start the image once and wait until it is ready; raises CupolaError when it is not."""
        tail = OutputTail()
        trial = new_session_guid()
        place = await self._launcher.admission.take(version.definition.memory_bytes, PROVISIONER, patient=True)
        try:
            session = SandboxSession(new_session_id(), trial, self._trials.path(trial))
            agent = await self._launcher.launch(version, image, session, tail, place)
            try:
                for step, duration in agent.steps:
                    await log.add(step, _STEP_MESSAGES[step], time.perf_counter() - duration / 1000)
            finally:
                await self._launcher.stop(agent, 0)
            if version.definition.primes:
                await self._prime(version, image, session, log)
        except StartFailed as error:
            for line in error.tail:
                await log.add("output", line, None)
            code = "OutOfMemory" if error.out_of_memory else "ContainerNotReady"
            raise CupolaError(code, error.describe()) from error
        finally:
            await asyncio.to_thread(self._trials.remove, trial)

    async def _prime(self, version: Version, image: Image, session: SandboxSession, log: _EventLog) -> None:
        """Find out what its interpreters can import ahead; a version that has nothing of the kind is none the worse."""

        async def place() -> Place:
            memory = version.definition.memory_bytes
            return await self._launcher.admission.take(memory, PROVISIONER, patient=True)

        await self._primer.learn(version, image, session, place, lambda text, began: log.add("prime", text, began))

    async def _fail(self, version: Version, log: _EventLog, code: str, message: str) -> None:
        # The lines that the container printed are events of their own.
        await log.add("failed", f"{code}: {message.partition(chr(10))[0]}", None, failed=True)
        await self._move(version, VersionStatus.FAILED, code, message)

    async def _move(
        self, version: Version, status: VersionStatus, code: str | None = None, message: str | None = None
    ) -> None:
        def write(connection: Connection) -> None:
            now = agents.version_by_key(connection, version.key)
            # It may have come to its end already, or be deleted, in the moment in which it was submitted.
            if now is not None and now.status is VersionStatus.CREATING:
                agents.move_version(connection, version.key, status, code, message)

        await self._database.write(write)


_STEP_MESSAGES = {
    "start": "The container was started.",
    "readiness": "GET /readiness answered with status 200.",
}


class _EventLog:
    def __init__(self, database: Database, version_key: int, clock: Callable[[], float]) -> None:
        self._database = database
        self._version_key = version_key
        self._clock = clock

    async def add(
        self, step: str, message: str, started: float | None, at: float | None = None, *, failed: bool = False
    ) -> None:
        """Append a line; `started` is the `perf_counter` reading at the step's beginning."""
        duration = None if started is None else 1000 * (time.perf_counter() - started)
        event = VersionEvent(int(1000 * (at or self._clock())), step, message, duration, failed)

        def write(connection: Connection) -> None:
            agents.add_event(connection, self._version_key, event)

        await self._database.write(write)
