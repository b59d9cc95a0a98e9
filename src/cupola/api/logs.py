"""The log stream of a session (wire contract, section 4.5), in both forms of its address."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cupola.api.http import caller
from cupola.domain.errors import CupolaError, not_found
from cupola.domain.session import Session
from cupola.sessions.manager import SessionManager
from cupola.storage import agents, sessions
from cupola.storage.database import Database
from cupola.telemetry.output import read_entries

NEWEST = "@newest"
"""Stands for the id of the session that was made last."""
DEFAULT_TAIL, MAXIMUM_TAIL = 100, 300
STREAM_LIMIT = 30 * 60
"""Seconds after which a log stream ends; clients connect again."""


class LogsApi:
    """GET …:logstream."""

    def __init__(self, database: Database, manager: SessionManager) -> None:
        self._database = database
        self._manager = manager

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        return [
            Route("/agents/{name}/versions/{version}/sessions/{session}:logstream", self.stream, methods=["GET"]),
            Route("/agents/{name}/sessions/{session}:logstream", self.stream, methods=["GET"]),
        ]

    async def stream(self, request: Request) -> Response:
        """Server-sent events: the last `tail` entries, then new ones while the session runs, unless `follow=false`."""
        session = await self._session(request)
        tail = request.query_params.get("tail", str(DEFAULT_TAIL))
        if not re.fullmatch("[0-9]{1,3}", tail) or int(tail) > MAXIMUM_TAIL:
            raise CupolaError("bad_request", f"tail: expected a whole number up to {MAXIMUM_TAIL}.", param="tail")
        follow = request.query_params.get("follow", "true").lower() != "false"
        return StreamingResponse(
            self._frames(session, int(tail), follow),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache"},
        )

    async def _frames(self, session: Session, tail: int, follow: bool) -> AsyncGenerator[str]:
        # Following starts before the files are read, so that nothing written in between is missed; an entry may come twice
        # only if it was written in that moment, and is then recognised.
        following = self._manager.follow_log(session) if follow else None
        first = asyncio.ensure_future(anext(following)) if following is not None else None
        try:
            await asyncio.sleep(0)
            entries = await asyncio.to_thread(read_entries, self._manager.log_directory(session), tail)
            for entry in entries:
                yield f"event: log\ndata: {entry}\n\n"
            if following is None or first is None:
                return
            known = set(entries)
            async with asyncio.timeout(STREAM_LIMIT):
                entry = await first
                if entry not in known:
                    yield f"event: log\ndata: {entry}\n\n"
                async for entry in following:
                    yield f"event: log\ndata: {entry}\n\n"
        except (StopAsyncIteration, TimeoutError):
            return
        finally:
            if first is not None and following is not None:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                await following.aclose()

    async def _session(self, request: Request) -> Session:
        path = request.path_params
        wanted = path["session"]

        def read(connection: Connection) -> Session | None:
            agent = agents.require_agent(connection, path["project"], path["name"])
            if wanted == NEWEST:
                return sessions.newest_session(connection, agent.key)
            return sessions.find_session(connection, agent.key, wanted)

        session = await self._database.read(read)
        if session is None or (session.owner != caller(request).id and not caller(request).administrator):
            if wanted == NEWEST:
                text = f"Agent {path['name']} has no session yet; `cupola versions show` tells how its deployment went."
                raise CupolaError("session_not_found", text, status=404)
            raise not_found(f"Session {wanted[:128]}", "session_not_found")
        return session
