"""Finding the session that a request's path names, for whoever the request counts as."""

from __future__ import annotations

from starlette.requests import Request

from cupola.api.http import caller
from cupola.domain.errors import CupolaError, not_found
from cupola.domain.principal import Principal
from cupola.domain.session import Session
from cupola.domain.version import Agent
from cupola.identity.delegation import IDENTITY_HEADER, effective_caller
from cupola.storage import agents, sessions
from cupola.storage.database import Database

NEWEST = "@newest"
"""Stands for the id of the session that was made last."""


def session_caller(request: Request) -> Principal:
    """Whose sessions the request is about. Raises CupolaError: 400 and 403 when it is for a user it may not be for."""
    return effective_caller(caller(request), request.headers.getlist(IDENTITY_HEADER))


def may_use(asking: Principal, session: Session) -> bool:
    """Whether a session is the caller's own, or the caller an administrator."""
    return session.owner == asking.id or asking.administrator


class SessionLookup:
    """Reads sessions for routes whose path has `{project}`, `{name}` of the agent and `{session}`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def agent(self, request: Request) -> Agent:
        """The agent. Raises CupolaError (404)."""
        project, name = request.path_params["project"], request.path_params["name"]
        return await self._database.read(lambda connection: agents.require_agent(connection, project, name))

    async def find(self, request: Request) -> Session:
        """The session. Raises CupolaError: 404 also when it belongs to someone else, and what `session_caller` raises."""
        return await self._find(request, await self.agent(request))

    async def find_or_newest(self, request: Request) -> Session:
        """As `find`, but the id may be `@newest`."""
        agent = await self.agent(request)
        if request.path_params["session"] != NEWEST:
            return await self._find(request, agent)
        asking = session_caller(request)
        newest = await self._database.read(lambda connection: sessions.newest_session(connection, agent.key))
        if newest is None or not may_use(asking, newest):
            text = f"Agent {agent.name} has no session yet; `cupola versions show` tells how its deployment went."
            raise CupolaError("session_not_found", text, status=404)
        return newest

    async def _find(self, request: Request, agent: Agent) -> Session:
        asking = session_caller(request)
        wanted = request.path_params["session"]
        session = await self._database.read(lambda connection: sessions.find_session(connection, agent.key, wanted))
        if session is None or not may_use(asking, session):
            raise not_found(f"Session {wanted[:128]}", "session_not_found")
        return session
