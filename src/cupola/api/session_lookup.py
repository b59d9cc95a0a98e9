"""Finding the session that a request's path names, for whoever the request counts as."""

from __future__ import annotations

from sqlalchemy import Connection
from starlette.requests import Request

from cupola.api.http import caller
from cupola.domain.errors import CupolaError, not_found
from cupola.domain.session import Session
from cupola.identity.delegation import HEADER, effective_caller
from cupola.storage import agents, sessions
from cupola.storage.database import Database

NEWEST = "@newest"
"""Stands for the id of the session that was made last."""


class SessionLookup:
    """Reads sessions for routes whose path has `{project}`, `{name}` of the agent and `{session}`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, request: Request) -> Session:
        """The session, which may be `@newest`. Raises CupolaError: 404 also when it belongs to someone else, unless an
        administrator asks; 400 and 403 when the request is for a user it may not be for."""
        asking = effective_caller(caller(request), request.headers.getlist(HEADER))
        path = request.path_params
        wanted = path["session"]

        def read(connection: Connection) -> Session | None:
            agent = agents.require_agent(connection, path["project"], path["name"])
            if wanted == NEWEST:
                return sessions.newest_session(connection, agent.key)
            return sessions.find_session(connection, agent.key, wanted)

        session = await self._database.read(read)
        if session is not None and (session.owner == asking.id or asking.administrator):
            return session
        if wanted == NEWEST:
            text = f"Agent {path['name']} has no session yet; `cupola versions show` tells how its deployment went."
            raise CupolaError("session_not_found", text, status=404)
        raise not_found(f"Session {wanted[:128]}", "session_not_found")
