"""Sessions in the database. Every function runs inside the caller's transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from cupola.domain.ids import new_guid
from cupola.domain.session import Session
from cupola.domain.version import Version
from cupola.storage.paging import Page, PageRequest, select_page
from cupola.storage.schema import sessions, tasks


def new_session_guid() -> str:
    """A guid as sessions have it: 32 hexadecimal digits (container contract, section 2.1)."""
    return new_guid().replace("-", "")


def create_session(
    connection: Connection,
    version: Version,
    session_id: str,
    owner: str,
    now: int,
    *,
    guid: str | None = None,
    pinned: bool = False,
) -> Session:
    """A new session on a version. Raises IntegrityError when the agent has a session of that id."""
    row = connection.execute(
        insert(sessions)
        .values(
            agent_key=version.agent.key, version_key=version.key, id=session_id, guid=guid or new_session_guid(),
            owner=owner, created_at=now, last_accessed_at=now, pinned=pinned,
        )
        .returning(*sessions.c)
    ).one()  # fmt: skip
    return _session(row)


def find_session(connection: Connection, agent_key: int, session_id: str) -> Session | None:
    """One session of an agent, or None."""
    query = select(sessions).where(sessions.c.agent_key == agent_key, sessions.c.id == session_id)
    row = connection.execute(query).first()
    return None if row is None else _session(row)


def session_by_key(connection: Connection, key: int) -> Session | None:
    """One session by its key, or None."""
    row = connection.execute(select(sessions).where(sessions.c.key == key)).first()
    return None if row is None else _session(row)


def list_sessions(connection: Connection, agent_key: int, owner: str | None, page: PageRequest) -> Page[Session]:
    """The sessions of an agent, in the order they were made; those of one owner if one is given."""
    query = select(sessions).where(sessions.c.agent_key == agent_key)
    if owner is not None:
        query = query.where(sessions.c.owner == owner)
    rows, more = select_page(connection, query, sessions.c.key, page)
    return Page(tuple(_session(row) for row in rows), more)


def sessions_of_version(connection: Connection, version_key: int) -> tuple[Session, ...]:
    """All sessions bound to a version."""
    return tuple(
        _session(row) for row in connection.execute(select(sessions).where(sessions.c.version_key == version_key))
    )


def expired_sessions(connection: Connection, last_accessed_before: int, limit: int) -> tuple[Session, ...]:
    """Some of the sessions that nobody has used for so long."""
    query = select(sessions).where(sessions.c.last_accessed_at < last_accessed_before).limit(limit)
    return tuple(_session(row) for row in connection.execute(query))


def newest_session(connection: Connection, agent_key: int) -> Session | None:
    """The session of an agent that was made last, or None."""
    query = select(sessions).where(sessions.c.agent_key == agent_key).order_by(sessions.c.key.desc()).limit(1)
    row = connection.execute(query).first()
    return None if row is None else _session(row)


def all_guids(connection: Connection) -> frozenset[str]:
    """The guids of all sessions: the names of their directories."""
    return frozenset(connection.execute(select(sessions.c.guid)).scalars())


def bind_session(connection: Connection, key: int, version_key: int) -> Session | None:
    """Let a session go on with another version; None when it is gone."""
    query = update(sessions).where(sessions.c.key == key).values(version_key=version_key).returning(*sessions.c)
    row = connection.execute(query).first()
    return None if row is None else _session(row)


def touch_session(connection: Connection, key: int, now: int) -> None:
    """Record that the session was used."""
    connection.execute(update(sessions).where(sessions.c.key == key).values(last_accessed_at=now))


def record_stop(connection: Connection, key: int, now: int) -> bool:
    """Record that the session's sandbox was stopped; False when the session is gone."""
    query = update(sessions).where(sessions.c.key == key).values(last_accessed_at=now, stopped_at=now)
    return connection.execute(query).rowcount > 0


def delete_sessions(connection: Connection, keys: tuple[int, ...]) -> None:
    """Remove sessions with their tasks."""
    guids = select(sessions.c.guid).where(sessions.c.key.in_(keys))
    connection.execute(delete(tasks).where(tasks.c.session_guid.in_(guids.scalar_subquery())))
    connection.execute(delete(sessions).where(sessions.c.key.in_(keys)))


def _session(row: Row[Any]) -> Session:
    return Session(
        row.key, row.agent_key, row.version_key, row.id, row.guid, row.owner, row.pinned, row.created_at,
        row.last_accessed_at, row.stopped_at,
    )  # fmt: skip
