"""Which session a request belongs to, and which version serves it. Every function runs inside the caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.principal import Principal
from cupola.domain.session import Session, SessionUpgrade
from cupola.domain.version import Agent, Version, VersionStatus, require_active
from cupola.storage import agents, sessions


def find(connection: Connection, agent: Agent, session_id: str) -> tuple[Session, Version] | None:
    """A session and the version it is bound to."""
    session = sessions.find_session(connection, agent.key, session_id)
    version = None if session is None else agents.version_by_key(connection, session.version_key)
    return None if session is None or version is None else (session, version)


def find_by_key(connection: Connection, session_key: int) -> tuple[Session, Version] | None:
    """A session by its key, and the version it is bound to."""
    session = sessions.session_by_key(connection, session_key)
    version = None if session is None else agents.version_by_key(connection, session.version_key)
    return None if session is None or version is None else (session, version)


def require_access(session: Session, caller: Principal) -> None:
    """Raises CupolaError (403) unless the session is the caller's."""
    if session.owner != caller.id and not caller.administrator:
        raise CupolaError("session_not_accessible", "The session belongs to another user.", status=403)


def version_for_new_session(connection: Connection, agent: Agent, number: int | None) -> Version:
    """The version that was asked for, else the newest that can serve. Raises CupolaError with the reason there is none."""
    if number is not None:
        version = agents.find_version(connection, agent.project, agent.name, number)
        if version is None:
            raise not_found(f"Version {number} of agent {agent.name}")
    else:
        version = _selected(connection, agent) or agents.latest_version(connection, agent)
        if version is None:
            raise CupolaError("agent_version_not_ready", f"Agent {agent.name} has no version; create one first.")
    require_active(version)
    return version


def version_to_upgrade_to(connection: Connection, session: Session, bound: Version) -> Version | None:
    """The version that a session without a sandbox goes on with, if that is not the one it is bound to."""
    if session.pinned or bound.agent.session_upgrade is SessionUpgrade.NEVER:
        return None
    selected = _selected(connection, bound.agent)
    return None if selected is None or selected.key == bound.key else selected


def _selected(connection: Connection, agent: Agent) -> Version | None:
    return agents.latest_version(connection, agent, VersionStatus.ACTIVE)
