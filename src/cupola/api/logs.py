"""The log stream of a session (wire contract, section 4.5), in both forms of its address."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from cupola.api.session_lookup import SessionLookup
from cupola.domain.errors import CupolaError
from cupola.domain.session import Session
from cupola.sessions.manager import SessionManager
from cupola.telemetry.output import is_status, read_entries, status_entry

DEFAULT_TAIL, MAXIMUM_TAIL = 100, 300
KINDS = ("console", "system")
"""`console` is everything, `system` only what the platform itself says."""
STREAM_LIMIT = 30 * 60.0
"""Seconds after which a log stream ends; clients connect again."""
QUIET_NOTICE = 60.0
"""Seconds without an entry after which a stream says so."""
QUIET_LIMIT = 120.0
"""Seconds without an entry after which a stream ends."""


class LogsApi:
    """GET …:logstream."""

    def __init__(self, lookup: SessionLookup, manager: SessionManager) -> None:
        self._lookup = lookup
        self._manager = manager

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        return [
            Route("/agents/{name}/versions/{version}/sessions/{session}:logstream", self.stream, methods=["GET"]),
            Route("/agents/{name}/sessions/{session}:logstream", self.stream, methods=["GET"]),
        ]

    async def stream(self, request: Request) -> Response:
        """Server-sent events: the last `tail` entries, then new ones while the session runs, unless `follow=false`."""
        session = await self._lookup.find_or_newest(request)
        tail = request.query_params.get("tail", str(DEFAULT_TAIL))
        if not re.fullmatch("[0-9]{1,3}", tail) or int(tail) > MAXIMUM_TAIL:
            raise CupolaError("bad_request", f"tail: expected a whole number up to {MAXIMUM_TAIL}.", param="tail")
        kind = request.query_params.get("kind", "console")
        if kind not in KINDS:
            raise CupolaError("bad_request", f"kind: expected {' or '.join(KINDS)}.", param="kind")
        follow = request.query_params.get("follow", "true").lower() != "false"
        return StreamingResponse(
            self._frames(session, int(tail), follow, kind == "system"),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache"},
        )

    async def _frames(self, session: Session, tail: int, follow: bool, only_status: bool) -> AsyncGenerator[str]:
        directory = self._manager.log_directory(session)
        if not follow:
            for entry in await asyncio.to_thread(read_entries, directory, tail, only_status):
                yield _frame(entry)
            return
        # Following starts before the files are read, so that nothing written in between is missed; an entry may come twice
        # only if it was written in that moment, and is then recognised.
        following = self._manager.follow_log(session)
        coming = asyncio.ensure_future(anext(following, None))
        try:
            await asyncio.sleep(0)
            known = await asyncio.to_thread(read_entries, directory, tail, only_status)
            for entry in known:
                yield _frame(entry)
            clock = asyncio.get_running_loop().time
            end, quiet_since, noticed = clock() + STREAM_LIMIT, clock(), False
            while clock() < end:
                until = min(end, quiet_since + (QUIET_LIMIT if noticed else QUIET_NOTICE))
                await asyncio.wait([coming], timeout=max(0.0, until - clock()))
                if coming.done():
                    new = coming.result()
                    if new is None:
                        return
                    coming = asyncio.ensure_future(anext(following, None))
                    if new in known or (only_status and not is_status(new)):
                        continue
                    known, noticed = [], False
                    yield _frame(new)
                    quiet_since = clock()
                elif noticed:
                    return
                else:
                    noticed = True
                    yield _frame(status_entry(f"No logs since last {QUIET_NOTICE:g} seconds"))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
            await following.aclose()


def _frame(entry: str) -> str:
    return f"event: log\ndata: {entry}\n\n"
