"""Sessions of an agent (wire contract, sections 4.1 to 4.3)."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.api.http import json_object, page_body, page_request
from cupola.api.session_lookup import SessionLookup, may_use, session_caller
from cupola.domain.errors import CupolaError
from cupola.domain.session import Session, check_session_id
from cupola.sessions.manager import SessionManager
from cupola.storage import agents, sessions
from cupola.storage.database import Database
from cupola.storage.paging import Page


class SessionsApi:
    """The routes below `/agents/{name}/endpoint/sessions`."""

    def __init__(self, lookup: SessionLookup, database: Database, manager: SessionManager) -> None:
        self._lookup = lookup
        self._database = database
        self._manager = manager

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        path = "/agents/{name}/endpoint/sessions"
        return [
            Route(path, self.create, methods=["POST"]),
            Route(path, self.list, methods=["GET"]),
            Route(path + "/{session}:stop", self.stop, methods=["POST"]),
            Route(path + "/{session}", self.get, methods=["GET"]),
            Route(path + "/{session}", self.delete, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """POST: a session with the id given or a new one, pinned to the version if one is given. 201.

        Its sandbox is made by the first request. 409 when the agent has a session of that id.
        """
        body = await json_object(request)
        number = _version_number(body.get("version_indicator"))
        given = body.get("agent_session_id")
        session_id = None if given is None else check_session_id(given)
        owner = session_caller(request)
        agent = await self._lookup.agent(request)
        try:
            session, version = await self._manager.create(agent, session_id, number, owner)
        except IntegrityError as error:
            text = f"Agent {agent.name} has a session {session_id} already; choose another id or none."
            raise CupolaError("session_already_exists", text, status=409) from error
        return JSONResponse(self._object(session, version.number), 201)

    async def list(self, request: Request) -> Response:
        """GET: the caller's sessions, newest first unless `order=asc`; administrators see everybody's."""
        principal = session_caller(request)
        agent = await self._lookup.agent(request)

        async def key_of(session_id: str) -> int | None:
            found = await self._database.read(
                lambda connection: sessions.find_session(connection, agent.key, session_id)
            )
            return None if found is None or not may_use(principal, found) else found.key

        wanted = await page_request(request.query_params, key_of)

        def read(connection: Connection) -> tuple[Page[Session], dict[int, int]]:
            owner = None if principal.administrator else principal.id
            page = sessions.list_sessions(connection, agent.key, owner, wanted)
            return page, agents.version_numbers(connection, {session.version_key for session in page.items})

        page, numbers = await self._database.read(read)
        return JSONResponse(
            page_body(page, lambda session: self._object(session, numbers[session.version_key]), lambda one: one.id)
        )

    async def get(self, request: Request) -> Response:
        """GET /{session}."""
        session = await self._lookup.find(request)
        numbers = await self._database.read(
            lambda connection: agents.version_numbers(connection, {session.version_key})
        )
        return JSONResponse(self._object(session, numbers[session.version_key]))

    async def stop(self, request: Request) -> Response:
        """POST /{session}:stop: as if it had been idle for long. 204, also when it has no sandbox."""
        await self._manager.stop_session(await self._lookup.find(request))
        return Response(status_code=204)

    async def delete(self, request: Request) -> Response:
        """DELETE /{session}: with its sandbox, files and logs. 204, also when there is no such session."""
        try:
            session = await self._lookup.find(request)
        except CupolaError as error:
            if error.code != "session_not_found":
                raise
        else:
            await self._manager.delete(session)
        return Response(status_code=204)

    def _object(self, session: Session, version: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "object": "agent.session",
            "agent_session_id": session.id,
            "version_indicator": {"type": "version_ref", "agent_version": str(version)},
            "status": str(self._manager.status(session)),
            "created_at": session.created_at,
            "last_accessed_at": session.last_accessed_at,
            "expires_at": session.expires_at,
        }
        if session.stopped_at is not None:
            body["stopped_at"] = session.stopped_at
        return body


def _version_number(indicator: object) -> int | None:
    if indicator is None:
        return None
    number = indicator.get("agent_version") if isinstance(indicator, dict) else None
    kind = indicator.get("type") if isinstance(indicator, dict) else None
    text = str(number) if isinstance(number, str | int) and not isinstance(number, bool) else ""
    if kind != "version_ref" or not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise CupolaError(
            "bad_request",
            'version_indicator: expected {"type": "version_ref", "agent_version": "<number>"}; aliases such as @latest are '
            "not possible here.",
            param="version_indicator",
        )
    return int(text)
