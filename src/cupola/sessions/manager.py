"""Sessions and their sandboxes: who gets which, started when needed, kept while used, stopped when idle.

A session has at most one sandbox. Its start is one task that all requests for the session wait for, so a client that
leaves does not undo the start for the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.ids import new_guid, new_session_id
from cupola.domain.principal import Principal
from cupola.domain.session import Session, SessionStatus
from cupola.domain.version import Agent, Version, VersionStatus, require_active
from cupola.images.store import ImageStore
from cupola.sessions.launcher import Launcher, RunningAgent, StartFailed
from cupola.storage import agents, sessions
from cupola.storage.database import Database
from cupola.telemetry.output import SessionLog

logger = logging.getLogger(__name__)

IDLE_CHECK_INTERVAL = 5.0


@dataclass(eq=False)
class _Live:
    """A session whose sandbox runs or is being started or stopped."""

    session: Session
    version: Version
    log: SessionLog
    start: asyncio.Task[RunningAgent | StartFailed] | None = None
    stop: asyncio.Task[None] | None = None
    requests: int = 0
    idle_since: float = field(default_factory=time.monotonic)


class SessionManager:
    """All sessions of this server. `directory` holds their durable files and logs."""

    def __init__(
        self,
        database: Database,
        images: ImageStore,
        launcher: Launcher,
        directory: Path,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._images = images
        self._launcher = launcher
        self._directory = directory
        self._clock = clock
        self._live: dict[int, _Live] = {}
        self._group: asyncio.TaskGroup | None = None
        self._closing = False

    async def run(self, stopping: asyncio.Event) -> None:
        """Own the starts and stops until `stopping` is set; then stop every sandbox."""
        await self._database.write(sessions.set_all_idle)
        await self._remove_orphaned_directories()
        async with asyncio.TaskGroup() as group:
            self._group = group
            while not stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopping.wait(), IDLE_CHECK_INTERVAL)
                self._stop_idle()
            self._closing = True
            await asyncio.gather(*(self._stop(live) for live in list(self._live.values())))

    async def _remove_orphaned_directories(self) -> None:
        """Remove the files of sessions whose deletion a previous process did not finish."""
        known = await self._database.read(sessions.all_guids)
        await asyncio.to_thread(_remove_all_but, self._directory, known)

    async def resolve(
        self, agent: Agent, session_id: str | None, number: int | None, caller: Principal
    ) -> tuple[Session, Version]:
        """The session that a request goes to, made when it is new. `number` asks for a version.

        Raises CupolaError when the session belongs to someone else or no version can serve.
        """
        known, bound = None, None
        if session_id is not None:
            known, bound = await self._find(agent, session_id)
        if known is None:
            version = await self._version_for_new_session(agent, number)
            try:
                known = await self._database.write(
                    lambda connection: sessions.create_session(
                        connection, version, session_id or new_session_id(), caller.id, int(self._clock())
                    )
                )
            except IntegrityError:
                # Another request has just made it, or the version was deleted meanwhile.
                known, bound = await self._find(agent, session_id or "")
                if known is None:
                    raise not_found(f"Agent version {version.name}") from None
            else:
                return known, version
        if known.owner != caller.id and not caller.administrator:
            raise CupolaError("session_not_accessible", "The session belongs to another user.", status=403)
        if bound is None:
            raise not_found(f"Session {known.id}", "session_not_found")
        require_active(bound)
        return known, bound

    async def _find(self, agent: Agent, session_id: str) -> tuple[Session | None, Version | None]:
        """A session and the version it is bound to, in one look: every request of a running session passes here."""

        def read(connection: Connection) -> tuple[Session | None, Version | None]:
            session = sessions.find_session(connection, agent.key, session_id)
            return session, None if session is None else agents.version_by_key(connection, session.version_key)

        return await self._database.read(read)

    async def _version_for_new_session(self, agent: Agent, number: int | None) -> Version:
        if number is not None:
            version = await self._database.read(
                lambda connection: agents.find_version(connection, agent.project, agent.name, number)
            )
            if version is None:
                raise not_found(f"Version {number} of agent {agent.name}")
        else:
            version = await self._database.read(
                lambda connection: (
                    agents.latest_version(connection, agent, VersionStatus.ACTIVE)
                    or agents.latest_version(connection, agent)
                )
            )
            if version is None:
                raise CupolaError("agent_version_not_ready", f"Agent {agent.name} has no version; create one first.")
        require_active(version)
        return version

    @contextlib.asynccontextmanager
    async def running(self, session: Session, version: Version) -> AsyncIterator[RunningAgent]:
        """The session's sandbox, started if it has to be and kept for the length of the block.

        Raises CupolaError (424 `session_not_ready`) with the reason and the container's last lines.
        """
        live = await self._enter(session, version)
        live.requests += 1
        try:
            yield await self._started(live)
        finally:
            live.requests -= 1
            live.idle_since = time.monotonic()

    async def _enter(self, session: Session, version: Version) -> _Live:
        while True:
            if self._closing or self._group is None:
                raise CupolaError("shutting_down", "The server is shutting down.", status=503)
            live = self._live.get(session.key)
            if live is None:
                live = _Live(session, version, SessionLog(self.log_directory(session)))
                self._live[session.key] = live
                live.start = self._group.create_task(self._start(live), name=f"start {session.id}")
            if live.stop is None:
                return live
            await asyncio.wait([live.stop])

    async def _started(self, live: _Live) -> RunningAgent:
        if live.start is None:
            raise RuntimeError("a live session without a start")
        try:
            started = await asyncio.shield(live.start)
        except asyncio.CancelledError:
            if live.start.cancelled():
                raise CupolaError("session_stopped", "The session was stopped while it started.", status=409) from None
            raise
        if isinstance(started, StartFailed):
            raise CupolaError("session_not_ready", started.describe(), status=424)
        return started

    async def _start(self, live: _Live) -> RunningAgent | StartFailed:
        try:
            agent = await self._launch(live)
        except StartFailed as error:
            live.log.status(f"Start failed: {error.message}")
            return await self._not_started(live, error)
        except Exception:
            reference = new_guid()
            logger.exception("starting session %s failed unexpectedly, reference %s", live.session.id, reference)
            failure = StartFailed(f"An unexpected error happened; the server's log has it under {reference}.", ())
            return await self._not_started(live, failure)
        except BaseException:
            self._forget(live)
            raise
        took = ", ".join(f"{step} {duration:.0f} ms" for step, duration in agent.steps)
        live.log.status(f"The sandbox is ready ({took}).")
        agent.sandbox.exited.add_done_callback(lambda _: self._begin_stop(live))
        return agent

    async def _not_started(self, live: _Live, failure: StartFailed) -> StartFailed:
        """The session has no sandbox, and its next request tries again."""
        self._forget(live)
        try:
            await self._record(live.session, SessionStatus.IDLE)
        except Exception:
            logger.exception("the status of session %s could not be recorded", live.session.id)
        return failure

    async def _launch(self, live: _Live) -> RunningAgent:
        session = live.session
        image = await self._images.load(live.version.digest or "")
        if image is None:
            raise StartFailed(f"The image of version {live.version.name} is no longer stored; deploy it again.", ())
        live.log.status("Starting the sandbox.")
        agent = await self._launcher.launch(
            live.version, image, session.id, session.guid, self._directory / session.guid, live.log
        )
        try:
            await self._record(session, SessionStatus.ACTIVE)
        except BaseException:
            await self._launcher.stop(agent, 0)
            raise
        return agent

    def _forget(self, live: _Live) -> None:
        self._live.pop(live.session.key, None)
        live.log.close()

    def _begin_stop(self, live: _Live) -> asyncio.Task[None]:
        if live.stop is None:
            if self._group is None:
                raise RuntimeError("the session manager is not running")
            live.stop = self._group.create_task(self._end(live), name=f"stop {live.session.id}")
        return live.stop

    async def _end(self, live: _Live) -> None:
        """Stop a session's sandbox, whatever state it is in. Runs once per live session."""
        if live.start is not None and not live.start.done():
            live.start.cancel()
            await asyncio.wait([live.start])
        agent = None if live.start is None or live.start.cancelled() else live.start.result()
        try:
            if isinstance(agent, RunningAgent):
                died = agent.sandbox.exited.done()
                await self._launcher.stop(agent)
                ended = f"The container {agent.sandbox.exited.result()}." if died else "The sandbox was stopped."
                live.log.status(ended)
                self._forget(live)
            await self._record(live.session, SessionStatus.IDLE)
        except Exception:
            logger.exception("stopping session %s failed; the next start of the server cleans up", live.session.id)
            self._forget(live)

    async def _stop(self, live: _Live) -> None:
        await asyncio.wait([self._begin_stop(live)])

    def _stop_idle(self) -> None:
        now = time.monotonic()
        for live in list(self._live.values()):
            timeout = live.version.definition.idle_timeout
            if timeout and live.requests == 0 and now - live.idle_since > timeout:
                self._begin_stop(live)

    async def _record(self, session: Session, status: SessionStatus) -> None:
        now = int(self._clock())
        await self._database.write(lambda connection: sessions.touch_session(connection, session.key, status, now))

    async def delete_of_version(self, version_key: int) -> None:
        """Stop and remove all sessions of a version, with their files and logs."""
        bound = await self._database.read(lambda connection: sessions.sessions_of_version(connection, version_key))
        for session in bound:
            if session.key in self._live:
                await self._stop(self._live[session.key])
        keys = tuple(session.key for session in bound)
        await self._database.write(lambda connection: sessions.delete_sessions(connection, keys))
        for session in bound:
            await asyncio.to_thread(shutil.rmtree, self._directory / session.guid, True)

    def has_live_sessions(self, version_key: int) -> bool:
        """Whether some session of a version has a sandbox right now."""
        return any(live.version.key == version_key for live in self._live.values())

    def log_directory(self, session: Session) -> Path:
        """Where a session's log files are."""
        return self._directory / session.guid / "logs"

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
