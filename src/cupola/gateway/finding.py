"""Which session a request is for: the one it names, the one of what it refers to, or a new one."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import Scope

from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal
from cupola.domain.session import Session, check_session_id
from cupola.domain.version import Agent, Version
from cupola.gateway.target import Target
from cupola.identity.call_ids import CallIds
from cupola.identity.delegation import IDENTITY_HEADER, effective_caller
from cupola.sessions.manager import SessionManager
from cupola.sessions.references import References
from cupola.storage import agents
from cupola.storage.database import Database
from cupola.storage.references import ReferenceKind

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,255}")
_NAMES = {ReferenceKind.RESPONSE: "Response", ReferenceKind.INVOCATION: "Invocation"}


def calling(scope: Scope) -> Principal:
    """Who a request counts as. Raises CupolaError (400, 403)."""
    return effective_caller(scope["cupola.caller"], Headers(scope=scope).getlist(IDENTITY_HEADER))


def session_in_query(scope: Scope) -> str | None:
    """`agent_session_id` of the query. Raises CupolaError (400)."""
    given = parse_qs(scope["query_string"].decode("latin-1")).get("agent_session_id")
    return check_session_id(given[0]) if given else None


class SessionFinder:
    """Finds sessions, and says on the scope which it was, and what its agent is told of the user."""

    def __init__(self, database: Database, manager: SessionManager, references: References, call_ids: CallIds) -> None:
        self._database = database
        self._manager = manager
        self._references = references
        self._call_ids = call_ids

    async def for_turn(self, scope: Scope, target: Target) -> tuple[Session, Version]:
        """The session of a turn: the one it names, else that of its conversation, else that of the response before it."""
        caller = calling(scope)
        agent = await self._agent(scope, target.agent)
        bound = None
        if target.conversation is not None:
            bound = await self._references.find(ReferenceKind.CONVERSATION, target.conversation, caller, agent.key)
        continued = await self._continued(agent, target, bound, caller)
        found = continued or await self._manager.resolve(agent, target.session_id, target.number, caller)
        if target.conversation is not None and bound is None:
            made = continued is None and target.session_id is None
            found = await self._bind(target.conversation, *found, caller, made=made)
        return self._chosen(scope, *found, "responses")

    async def by_query(self, scope: Scope, protocol: str) -> tuple[Session, Version]:
        """The session that the query names, made when it is new; a new one when it names none."""
        wanted = session_in_query(scope)
        agent = await self._agent(scope, scope["path_params"]["name"])
        return self._chosen(scope, *await self._manager.resolve(agent, wanted, None, calling(scope)), protocol)

    async def of(self, scope: Scope, kind: ReferenceKind, reference_id: str, protocol: str) -> tuple[Session, Version]:
        """The session of a response or an invocation; the query may name it. Raises CupolaError (404), also for others'."""
        caller = calling(scope)
        project, name = scope["path_params"]["project"], scope["path_params"].get("name")
        agent = None if name is None else await self._agent(scope, name)
        wanted = session_in_query(scope)
        found = None
        if not _ID.fullmatch(reference_id):
            raise _unknown(kind, reference_id)
        if agent is not None and wanted is not None:
            found = await self._manager.find(agent, wanted, caller)
        else:
            agent_key = None if agent is None else agent.key
            session_key = await self._references.find(kind, reference_id, caller, agent_key)
            found = None if session_key is None else await self._manager.resume(session_key, caller)
        if found is None or found[1].agent.project != project:
            raise _unknown(kind, reference_id)
        return self._chosen(scope, *found, protocol)

    async def any(self, scope: Scope, protocol: str) -> tuple[Session, Version]:
        """A session for what is the same in all of them, unless the query names one."""
        if session_in_query(scope) is not None:
            return await self.by_query(scope, protocol)
        agent = await self._agent(scope, scope["path_params"]["name"])
        return self._chosen(scope, *await self._manager.any_session(agent, calling(scope)), protocol)

    async def _agent(self, scope: Scope, name: str) -> Agent:
        project = scope["path_params"]["project"]
        return await self._database.read(lambda connection: agents.require_agent(connection, project, name))

    async def _continued(
        self, agent: Agent, target: Target, bound: int | None, caller: Principal
    ) -> tuple[Session, Version] | None:
        if target.session_id is not None:
            return None
        key = bound
        if key is None and target.previous is not None:
            key = await self._references.find(ReferenceKind.RESPONSE, target.previous, caller, agent.key)
            if key is None:
                raise _unknown(ReferenceKind.RESPONSE, target.previous, "previous_response_id")
        return None if key is None else await self._manager.resume(key, caller)

    async def _bind(
        self, conversation: str, session: Session, version: Version, caller: Principal, *, made: bool
    ) -> tuple[Session, Version]:
        bound = await self._references.bind(conversation, caller, session)
        if bound == session.key or not made:
            return session, version
        # Another first turn of the same conversation was quicker: this one joins it.
        found = await self._manager.resume(bound, caller)
        if found is None:
            return session, version
        await self._manager.delete(session)
        return found

    def _chosen(self, scope: Scope, session: Session, version: Version, protocol: str) -> tuple[Session, Version]:
        scope["cupola.session_id"] = session.id
        scope["cupola.user_headers"] = self._call_ids.headers(version.agent.project, calling(scope), session.guid)
        scope["cupola.server_timing"].resolved()
        if not version.definition.speaks(protocol):
            spoken = ", ".join(entry.protocol for entry in version.definition.protocols)
            raise CupolaError(
                "ProtocolVersionNotSupported",
                f"Version {version.name} does not declare the protocol {protocol}, only {spoken}; add it to "
                "protocol_versions in a new version.",
            )
        return session, version


def _unknown(kind: ReferenceKind, reference_id: str, param: str | None = None) -> CupolaError:
    return CupolaError(
        "not_found",
        f"{_NAMES[kind]} {reference_id[:128]} does not exist here. If the agent made this id itself, say which session has "
        "it: agent_session_id.",
        status=404,
        param=param,
    )
