"""Sessions in the database. Every function runs inside the caller's transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from cupola.domain.ids import new_guid
from cupola.domain.session import Session, SessionStatus
from cupola.domain.version import Version
from cupola.storage.schema import sessions


def create_session(connection: Connection, version: Version, session_id: str, owner: str, now: int) -> Session:
    """A new session on a version. Raises IntegrityError when the agent has a session of that id."""
    row = connection.execute(
        insert(sessions)
        .values(
            agent_key=version.agent.key, version_key=version.key, id=session_id, guid=new_guid().replace("-", ""),
            owner=owner, status=SessionStatus.CREATING, created_at=now, last_accessed_at=now,
        )
        .returning(*sessions.c)
    ).one()  # fmt: skip
    return _session(row)


def find_session(connection: Connection, agent_key: int, session_id: str) -> Session | None:
    """One session of an agent, or None."""
    query = select(sessions).where(sessions.c.agent_key == agent_key, sessions.c.id == session_id)
    row = connection.execute(query).first()
    return None if row is None else _session(row)


def sessions_of_version(connection: Connection, version_key: int) -> tuple[Session, ...]:
    """All sessions bound to a version."""
    return tuple(
        _session(row) for row in connection.execute(select(sessions).where(sessions.c.version_key == version_key))
    )


def newest_session(connection: Connection, agent_key: int) -> Session | None:
    """The session of an agent that was made last, or None."""
    query = select(sessions).where(sessions.c.agent_key == agent_key).order_by(sessions.c.key.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _session(row)


def all_guids(connection: Connection) -> frozenset[str]:
    """The guids of all sessions: the names of their directories."""
    return frozenset(connection.execute(select(sessions.c.guid)).scalars())


def touch_session(connection: Connection, key: int, status: SessionStatus, now: int) -> None:
    """Record a new status and that the session was used."""
    connection.execute(update(sessions).where(sessions.c.key == key).values(status=status, last_accessed_at=now))


def delete_sessions(connection: Connection, keys: tuple[int, ...]) -> None:
    """Remove sessions."""
    connection.execute(delete(sessions).where(sessions.c.key.in_(keys)))


def set_all_idle(connection: Connection) -> None:
    """What is true after a start of the platform: no session has a sandbox."""
    running = (SessionStatus.CREATING, SessionStatus.ACTIVE)
    connection.execute(update(sessions).where(sessions.c.status.in_(running)).values(status=SessionStatus.IDLE))


def _session(row: Row[Any]) -> Session:
    return Session(
        row.key, row.agent_key, row.version_key, row.id, row.guid, row.owner, SessionStatus(row.status), row.created_at,
        row.last_accessed_at,
    )  # fmt: skip
