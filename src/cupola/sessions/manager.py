"""Sessions and their sandboxes: which request gets which, made when needed, kept while used, put to sleep when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.ids import new_guid, new_session_id
from cupola.domain.principal import Principal
from cupola.domain.session import LIFETIME, Session, SessionStatus, SessionUpgrade
from cupola.domain.version import Agent, Version, require_active
from cupola.images.model import Images
from cupola.sessions import binding
from cupola.sessions.launcher import Launcher, RunningAgent, SandboxSession, StartFailed
from cupola.sessions.lifecycle import Status
from cupola.sessions.live import LiveSession, Use
from cupola.sessions.pool import StartedSandbox, WarmPool
from cupola.sessions.primer import Primer
from cupola.sessions.priming.client import PrimingFailed
from cupola.sessions.volumes import Volumes
from cupola.storage import agents, retention, sessions
from cupola.storage.database import Database
from cupola.telemetry import metrics
from cupola.telemetry.output import SessionLog

logger = logging.getLogger(__name__)

IDLE_CHECK_INTERVAL = 0.5
HOUSEKEEPING_INTERVAL = 60.0
TOUCH_INTERVAL = 60.0
"""Seconds for which a session's last use is not written down again."""
EXPIRY_BATCH = 100


@dataclass(frozen=True)
class Rest:
    """When sandboxes rest, in seconds. Frozen after `freeze_after` without requests, 0 for never; a request that lasts
    longer than `hold_limit` does not keep a sandbox awake any more."""

    freeze_after: float = 10.0
    hold_limit: float = 4 * 3600.0


class SessionManager:
    """All sessions of this server. `volumes` are their durable files, `logs` has a directory for each."""

    def __init__(
        self,
        database: Database,
        images: Images,
        launcher: Launcher,
        primer: Primer,
        pool: WarmPool,
        volumes: Volumes,
        logs: Path,
        rest: Rest,
        clock: Callable[[], float] = time.time,
        uptime: Callable[[], float] = time.monotonic,
    ) -> None:
        self._uptime = uptime
        self._database = database
        self._images = images
        self._launcher = launcher
        self._primer = primer
        self._pool = pool
        self._volumes = volumes
        self._logs = logs
        self._rest = rest
        self._clock = clock
        self._live: dict[int, LiveSession] = {}
        self._group: asyncio.TaskGroup | None = None
        self._closing = False
        launcher.admission.make_room = self._make_room

    async def run(self, stopping: asyncio.Event) -> None:
        """Own the starts and stops until `stopping` is set; then stop every sandbox."""
        await self._remove_orphaned_directories()
        async with asyncio.TaskGroup() as group:
            self._group = group
            housekeeping = group.create_task(self._housekeeping(), name="housekeeping")
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), IDLE_CHECK_INTERVAL)
                self._put_to_rest()
            self._closing = True
            housekeeping.cancel()
            await asyncio.gather(*(live.stop() for live in list(self._live.values())))

    async def _remove_orphaned_directories(self) -> None:
        """Remove the files of sessions whose deletion a previous process did not finish."""
        known = await self._database.read(sessions.all_guids)
        await asyncio.to_thread(self._volumes.remove_all_but, known)
        await asyncio.to_thread(_remove_all_but, self._logs, known)

    # Which session

    async def resolve(
        self, agent: Agent, session_id: str | None, number: int | None, caller: Principal
    ) -> tuple[Session, Version]:
        """The session that a request goes to, made when it is new. `number` asks for a version.

        Raises CupolaError when the session belongs to someone else or no version can serve.
        """
        if session_id is not None and (found := await self.find(agent, session_id, caller)) is not None:
            return found
        try:
            return await self.create(agent, session_id, number, caller)
        except IntegrityError:
            # Another request has just made it, or the version was deleted meanwhile.
            found = await self._database.read(lambda connection: binding.find(connection, agent, session_id or ""))
            if found is None:
                raise not_found(f"A version of agent {agent.name} that can serve") from None
            return await self._admit(*found, caller)

    async def resume(self, session_key: int, caller: Principal) -> tuple[Session, Version] | None:
        """The session of a key, as `resolve` gives it; None when it is gone."""
        found = await self._database.read(lambda connection: binding.find_by_key(connection, session_key))
        return None if found is None else await self._admit(*found, caller)

    async def find(self, agent: Agent, session_id: str, caller: Principal) -> tuple[Session, Version] | None:
        """The session of an id, as `resolve` gives it, but never a new one."""
        found = await self._database.read(lambda connection: binding.find(connection, agent, session_id))
        return None if found is None else await self._admit(*found, caller)

    async def any_session(self, agent: Agent, caller: Principal) -> tuple[Session, Version]:
        """A session for what is the same in all of them: one of the caller's with a sandbox of the version that new sessions
        get, else a new one."""
        version = await self._database.read(lambda connection: binding.version_for_new_session(connection, agent, None))
        for live in self._live.values():
            if live.version.key == version.key and live.session.owner == caller.id and live.agent is not None:
                return live.session, version
        return await self.create(agent, None, None, caller)

    async def create(
        self, agent: Agent, session_id: str | None, number: int | None, caller: Principal
    ) -> tuple[Session, Version]:
        """A new session, pinned to a version if one is asked for. Raises IntegrityError when the id is taken."""
        version = await self._database.read(
            lambda connection: binding.version_for_new_session(connection, agent, number)
        )
        ahead = self._pool.claim_started(version) if session_id is None else None
        new_id = ahead.session.id if ahead else session_id or new_session_id()

        def write(connection: Connection) -> Session:
            return sessions.create_session(
                connection, version, new_id, caller.id, int(self._clock()), guid=ahead.session.guid if ahead else None,
                pinned=number is not None,
            )  # fmt: skip

        try:
            session = await self._database.write(write)
        except BaseException:
            if ahead is not None:
                self._pool.discard(ahead)
            raise
        if ahead is not None:
            self._adopt(session, ahead)
        return session, version

    async def _admit(self, session: Session, version: Version, caller: Principal) -> tuple[Session, Version]:
        binding.require_access(session, caller)
        live = self._live.get(session.key)
        if live is None or not self._keeps_its_version(live):
            upgraded = await self._upgrade(session, version)
            if upgraded is not None:
                return upgraded
        require_active(version)
        return session, version

    def _keeps_its_version(self, live: LiveSession) -> bool:
        return live.status not in (Status.STORED, Status.STOPPING) and (live.busy or not live.draining)

    async def _upgrade(self, session: Session, version: Version) -> tuple[Session, Version] | None:
        target = await self._database.read(
            lambda connection: binding.version_to_upgrade_to(connection, session, version)
        )
        if target is None:
            return None
        rebound = await self._database.write(
            lambda connection: sessions.bind_session(connection, session.key, target.key)
        )
        if rebound is None:
            raise not_found(f"Session {session.id}", "session_not_found")
        return rebound, target

    # Their sandboxes

    @contextlib.asynccontextmanager
    async def running(self, session: Session, version: Version) -> AsyncIterator[Use]:
        """The session's sandbox, made or woken if it has to be, and kept awake for the length of the block.

        When the server is full, the owners of sessions take turns. Raises CupolaError: 424 `session_not_ready` with the reason
        and the container's last lines, 429 when there is no room.
        """
        if self._closing or self._group is None:
            raise CupolaError("shutting_down", "The server is shutting down.", status=503)
        live = self._live.get(session.key)
        if live is None:
            live = self._open(session, version, SessionLog(self.log_directory(session)))
        elif live.status in (Status.STORED, Status.STOPPING):
            live.version, live.draining = version, False
        self._touch(session)
        async with live.use(session.owner) as use:
            yield use

    def _open(self, session: Session, version: Version, log: SessionLog) -> LiveSession:
        live = LiveSession(session, version, log, self, self._spawn, self._uptime)
        self._live[session.key] = live
        return live

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        if self._group is None:
            raise RuntimeError("the session manager is not running")
        return self._group.create_task(work)

    def _adopt(self, session: Session, ahead: StartedSandbox) -> None:
        live = self._open(session, ahead.version, ahead.log)
        live.log.status("The session was given a sandbox that was made ahead.")
        live.adopt(ahead.agent)

    def keep_awake(self, session: Session, works: Callable[[RunningAgent], Awaitable[None]]) -> None:
        """Hold the session's sandbox, if it has one, until `works` returns: for work that goes on without a request."""
        live = self._live.get(session.key)

        async def hold(live: LiveSession) -> None:
            try:
                async with live.use(live.caller) as use:
                    await works(use.agent)
            except Exception:
                logger.exception("session %s is not kept awake any more", session.id)

        if live is not None and live.status is Status.RUNNING:
            self._spawn(hold(live))

    # What a live session asks of its keeper

    async def start(self, live: LiveSession) -> RunningAgent:
        """Make a sandbox. Raises CupolaError with the reason when there is none."""
        try:
            return await self._launch(live)
        except StartFailed as error:
            live.log.status(f"Start failed: {error.message}")
            raise CupolaError("session_not_ready", error.describe(), status=424) from error
        except CupolaError as error:
            live.log.status(f"Start failed: {error.message}")
            raise
        except Exception as error:
            reference = new_guid()
            logger.exception("starting session %s failed unexpectedly, reference %s", live.session.id, reference)
            text = f"An unexpected error happened; the server's log has it under {reference}."
            raise CupolaError("session_not_ready", text, status=424) from error

    async def _launch(self, live: LiveSession) -> RunningAgent:
        session, version = live.session, live.version
        identity = SandboxSession(session.id, session.guid, self._volumes.path(session.guid))
        if (primed := self._pool.claim_primed(version)) is not None:
            try:
                live.log.status(f"The session gets an interpreter that was made ready for version {version.number}.")
                agent = await self._primer.hand_over(primed, identity, live.log)
            except (PrimingFailed, StartFailed) as error:
                live.log.status(f"It could not be used, so the sandbox starts cold: {str(error).removesuffix('.')}.")
            else:
                live.log.status(agent.describe())
                return agent
        image = await self._images.load(version.digest or "")
        if image is None:
            raise StartFailed(f"The image of version {version.name} is no longer stored; deploy it again.", ())
        began = time.perf_counter()
        place = await self._launcher.admission.take(version.definition.memory_bytes, live.caller)
        queued = time.perf_counter() - began
        live.log.status(f"Starting the sandbox on version {version.number}.")
        agent = await self._launcher.launch(version, image, identity, live.log, place)
        agent.queued = queued
        live.log.status(agent.describe())
        return agent

    async def freeze(self, live: LiveSession, agent: RunningAgent) -> None:
        """Let a sandbox stand still."""
        await self._launcher.driver.freeze(agent.sandbox.name)

    def thaw(self, live: LiveSession, agent: RunningAgent) -> None:
        """Let a sandbox go on."""
        self._launcher.driver.thaw(agent.sandbox.name)

    async def stop(self, live: LiveSession, agent: RunningAgent) -> None:
        """Remove a sandbox and write down when."""
        died = agent.sandbox.exited.done()
        await self._launcher.stop(agent)
        if not died:
            live.log.status("The sandbox was stopped.")
        elif agent.sandbox.exited.done():
            live.log.status(f"The container {agent.sandbox.exited.result()}.")
        try:
            await self._record_stop(live.session)
        except Exception:
            logger.exception("the stop of session %s could not be written down", live.session.id)

    async def _record_stop(self, session: Session) -> None:
        now = int(self._clock())
        if not await self._database.write(lambda connection: sessions.record_stop(connection, session.key, now)):
            # It was deleted while its sandbox ran, which may have written new files since.
            await self._remove_files(session)

    def forget(self, live: LiveSession) -> None:
        """The session has no sandbox and needs none."""
        if self._live.get(live.session.key) is live:
            del self._live[live.session.key]
            live.log.close()

    # Sleep and room

    def _put_to_rest(self) -> None:
        for live in list(self._live.values()):
            live.rest(self._rest.freeze_after, live.version.definition.idle_timeout, self._rest.hold_limit)

    def _make_room(self) -> None:
        """Stop the least recently used frozen sandboxes, as many as are waited for; those made ahead go first."""
        ending = sum(live.status is Status.STOPPING for live in self._live.values())
        frozen = sorted(
            (live for live in self._live.values() if live.status is Status.FROZEN and not live.busy),
            key=lambda live: live.idle_since,
        )
        for _ in range(self._launcher.admission.waiting - ending):
            if self._pool.give_up_one():
                continue
            if not frozen:
                return
            frozen.pop(0).stop_soon()

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_INTERVAL)
            try:
                await self._launcher.stop_leftovers()
                await self.remove_expired()
                await self._sweep()
            except Exception:
                logger.exception("housekeeping failed; it is tried again")

    async def remove_expired(self) -> None:
        """Delete the sessions that nobody has used for their lifetime, with their files."""
        before = int(self._clock()) - LIFETIME
        while expired := await self._database.read(
            lambda connection: sessions.expired_sessions(connection, before, EXPIRY_BATCH)
        ):
            for session in expired:
                logger.info("session %s has expired", session.id)
                await self.delete(session)

    async def _sweep(self) -> None:
        """Remove what agents keep with the platform and whose time is over."""
        now = self._clock()
        while await self._database.write(lambda connection: retention.sweep(connection, now, EXPIRY_BATCH)):
            pass

    def _touch(self, session: Session) -> None:
        """Write down that a session is used, without letting the request wait for it."""
        now = int(self._clock())
        if now - session.last_accessed_at >= TOUCH_INTERVAL:
            self._spawn(self._write_touch(session, now))

    async def _write_touch(self, session: Session, now: int) -> None:
        try:
            await self._database.write(lambda connection: sessions.touch_session(connection, session.key, now))
        except Exception:
            logger.exception("the use of session %s could not be written down", session.id)

    # Stop, delete, look

    def status(self, session: Session) -> SessionStatus:
        """The status of a session as clients know it."""
        live = self._live.get(session.key)
        if live is None or live.status is Status.STORED:
            return SessionStatus.IDLE
        if live.status is Status.STARTING:
            return SessionStatus.CREATING if session.stopped_at is None else SessionStatus.IDLE
        return SessionStatus.ACTIVE

    async def stop_session(self, session: Session) -> None:
        """Stop a session's sandbox now; its files stay. Nothing happens when it has none."""
        live = self._live.get(session.key)
        if live is not None:
            await live.stop()

    async def delete(self, session: Session) -> None:
        """Remove a session with its sandbox, its files and its logs."""
        await self._database.write(lambda connection: sessions.delete_sessions(connection, (session.key,)))
        await self.stop_session(session)
        await self._remove_files(session)

    async def _remove_files(self, session: Session) -> None:
        await asyncio.to_thread(self._volumes.remove, session.guid)
        await asyncio.to_thread(shutil.rmtree, self.log_directory(session), True)

    def version_activated(self, version: Version) -> None:
        """New sessions go to this version now, and by the agent's policy those that are there follow."""
        self._pool.expect(version)
        if version.agent.session_upgrade is SessionUpgrade.DRAIN:
            for live in list(self._live.values()):
                if (
                    live.session.agent_key == version.agent.key
                    and not live.session.pinned
                    and live.version.number < version.number
                ):
                    live.drain()

    async def delete_of_version(self, version_key: int) -> None:
        """Stop all sessions of a version. Those that may follow another version keep their files, the others are removed."""
        await self._pool.drained(version_key)
        for live in [live for live in self._live.values() if live.version.key == version_key]:
            await live.stop()
        version, bound = await self._database.read(
            lambda connection: (
                agents.version_by_key(connection, version_key),
                sessions.sessions_of_version(connection, version_key),
            )
        )
        for session in bound:
            if version is None or await self._upgrade(session, version) is None:
                await self.delete(session)

    def has_live_sessions(self, version_key: int) -> bool:
        """Whether some session of a version has a sandbox right now."""
        return any(live.version.key == version_key and live.status is not Status.STORED for live in self._live.values())

    def measure(self) -> None:
        """Bring the gauges up to date."""
        counts = Counter(live.status for live in self._live.values())
        for status in Status:
            if status is not Status.STORED:
                metrics.SANDBOXES.labels(status).set(counts[status])
        started, primed = self._pool.counts()
        metrics.SANDBOXES.labels("started_ahead").set(started)
        metrics.SANDBOXES.labels("primed_ahead").set(primed)
        metrics.WAITING.set(self._launcher.admission.waiting)

    def log_directory(self, session: Session) -> Path:
        """Where a session's log files are."""
        return self._logs / session.guid

    async def follow_log(self, session: Session) -> AsyncGenerator[str]:
        """New log entries of a session while it has a sandbox; ends at once when it has none."""
        live = self._live.get(session.key)
        if live is not None:
            async for entry in live.log.follow():
                yield entry


def _remove_all_but(directory: Path, known: frozenset[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for entry in directory.iterdir():
        if entry.name not in known:
            shutil.rmtree(entry)
