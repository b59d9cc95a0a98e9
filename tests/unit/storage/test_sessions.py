from __future__ import annotations

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from cupola.domain.session import SessionStatus
from cupola.storage import sessions
from tests.unit.storage.samples import add_agent, add_version

CREATING, ACTIVE, IDLE, FAILED = SessionStatus


def test_a_session_is_read_as_it_was_written(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    made = sessions.create_session(connection, version, "session-1", "owner", 5)
    assert sessions.find_session(connection, version.agent.key, "session-1") == made
    assert (made.id, made.owner, made.status) == ("session-1", "owner", CREATING)
    assert (made.agent_key, made.version_key) == (version.agent.key, version.key)
    assert (made.created_at, made.last_accessed_at) == (5, 5)


def test_an_id_is_unique_for_an_agent_whatever_the_version(connection: Connection) -> None:
    agent, other = add_agent(connection), add_agent(connection, "other")
    sessions.create_session(connection, add_version(connection, agent), "session-1", "owner", 5)
    sessions.create_session(connection, add_version(connection, other), "session-1", "owner", 5)
    with pytest.raises(IntegrityError):
        sessions.create_session(connection, add_version(connection, agent), "session-1", "owner", 5)


def test_sessions_of_the_same_id_have_different_private_names(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    first = sessions.create_session(connection, version, "session-1", "owner", 5)
    sessions.delete_sessions(connection, (first.key,))
    assert sessions.find_session(connection, version.agent.key, "session-1") is None
    second = sessions.create_session(connection, version, "session-1", "owner", 5)
    assert first.guid != second.guid
    assert second.key > first.key


def test_sessions_are_found_by_version(connection: Connection) -> None:
    agent = add_agent(connection)
    one, two = add_version(connection, agent), add_version(connection, agent)
    of_one = tuple(sessions.create_session(connection, one, f"session-{n}", "owner", 5) for n in range(3))
    sessions.create_session(connection, two, "session-9", "owner", 5)
    assert sessions.sessions_of_version(connection, one.key) == of_one
    sessions.delete_sessions(connection, tuple(session.key for session in of_one[:2]))
    assert sessions.sessions_of_version(connection, one.key) == of_one[2:]
    sessions.delete_sessions(connection, ())
    assert sessions.sessions_of_version(connection, one.key) == of_one[2:]


def test_the_newest_session_of_an_agent(connection: Connection) -> None:
    agent, other = add_agent(connection), add_agent(connection, "other")
    assert sessions.newest_session(connection, agent.key) is None
    version = add_version(connection, agent)
    for name in ("session-2", "session-1"):
        newest = sessions.create_session(connection, version, name, "owner", 5)
    sessions.create_session(connection, add_version(connection, other), "session-3", "owner", 5)
    assert sessions.newest_session(connection, agent.key) == newest


def test_use_is_recorded(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    made = sessions.create_session(connection, version, "session-1", "owner", 5)
    sessions.touch_session(connection, made.key, ACTIVE, 9)
    found = sessions.find_session(connection, version.agent.key, "session-1")
    assert found is not None
    assert (found.status, found.created_at, found.last_accessed_at) == (ACTIVE, 5, 9)


def test_after_a_start_of_the_platform_no_session_runs(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    for status in SessionStatus:
        made = sessions.create_session(connection, version, f"session-{status}", "owner", 5)
        sessions.touch_session(connection, made.key, status, 5)
    sessions.set_all_idle(connection)
    after = {session.id: session.status for session in sessions.sessions_of_version(connection, version.key)}
    assert after == {
        "session-creating": IDLE,
        "session-active": IDLE,
        "session-idle": IDLE,
        "session-failed": FAILED,
    }
