from __future__ import annotations

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from cupola.storage import sessions
from cupola.storage.paging import PageRequest
from tests.unit.storage.samples import add_agent, add_version


def test_a_session_is_read_as_it_was_written(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    made = sessions.create_session(connection, version, "session-1", "owner", 5)
    assert sessions.find_session(connection, version.agent.key, "session-1") == made
    assert (made.id, made.owner, made.pinned) == ("session-1", "owner", False)
    assert (made.agent_key, made.version_key) == (version.agent.key, version.key)
    assert (made.created_at, made.last_accessed_at, made.stopped_at) == (5, 5, None)
    assert made.expires_at == 5 + 30 * 24 * 3600
    pinned = sessions.create_session(connection, version, "session-2", "owner", 5, guid="f" * 32, pinned=True)
    assert (pinned.guid, pinned.pinned) == ("f" * 32, True)


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


def test_use_and_stops_are_recorded(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    made = sessions.create_session(connection, version, "session-1", "owner", 5)
    sessions.touch_session(connection, made.key, 9)
    found = sessions.find_session(connection, version.agent.key, "session-1")
    assert found is not None
    assert (found.created_at, found.last_accessed_at, found.stopped_at) == (5, 9, None)
    assert sessions.record_stop(connection, made.key, 11)
    found = sessions.find_session(connection, version.agent.key, "session-1")
    assert found is not None
    assert (found.created_at, found.last_accessed_at, found.stopped_at) == (5, 11, 11)
    sessions.delete_sessions(connection, (made.key,))
    assert not sessions.record_stop(connection, made.key, 12)


def test_a_session_goes_on_with_another_version(connection: Connection) -> None:
    agent = add_agent(connection)
    one, two = add_version(connection, agent), add_version(connection, agent)
    made = sessions.create_session(connection, one, "session-1", "owner", 5)
    bound = sessions.bind_session(connection, made.key, two.key)
    assert bound is not None
    assert (bound.version_key, bound.guid, bound.id) == (two.key, made.guid, made.id)
    sessions.delete_sessions(connection, (made.key,))
    assert sessions.bind_session(connection, made.key, one.key) is None


def test_expired_sessions_are_found_a_few_at_a_time(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    for number in range(5):
        sessions.create_session(connection, version, f"session-{number}", "owner", number)
    assert [session.id for session in sessions.expired_sessions(connection, 3, 10)] == [
        "session-0",
        "session-1",
        "session-2",
    ]
    assert len(sessions.expired_sessions(connection, 5, 2)) == 2


def test_sessions_are_listed_by_owner(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    for number, owner in enumerate(("ada", "bob", "ada")):
        sessions.create_session(connection, version, f"session-{number}", owner, 1)
    everybody = sessions.list_sessions(connection, version.agent.key, None, PageRequest())
    assert [session.id for session in everybody.items] == ["session-2", "session-1", "session-0"]
    page = sessions.list_sessions(connection, version.agent.key, "ada", PageRequest(limit=1, order="asc"))
    assert ([session.id for session in page.items], page.has_more) == (["session-0"], True)
