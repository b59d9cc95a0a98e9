from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from cupola.domain.version import IllegalMove, VersionEvent, VersionStatus
from cupola.storage import agents, schema, sessions
from cupola.storage.database import open_engine
from cupola.storage.paging import PageRequest
from tests.unit.storage.samples import DEFINITION, add_agent, add_version

CREATING, ACTIVE, FAILED, DELETING = VersionStatus


def test_an_agent_is_found_in_its_project_only(connection: Connection) -> None:
    agent = add_agent(connection)
    assert agents.find_agent(connection, "default", "echo") == agent
    assert agents.find_agent(connection, "other", "echo") is None
    assert agents.find_agent(connection, "default", "other") is None
    assert (agent.project, agent.name, agent.created_at) == ("default", "echo", 1000)


def test_every_agent_has_an_identity_of_its_own(connection: Connection) -> None:
    one, two = add_agent(connection), add_agent(connection, "two")
    identities = {one.guid, two.guid}
    for agent in (one, two):
        identities |= {agent.identity.principal_id, agent.identity.client_id, agent.identity.blueprint_id}
    assert len(identities) == 8


def test_a_name_is_taken_once_in_a_project(connection: Connection) -> None:
    add_agent(connection)
    add_agent(connection, project="other")
    with pytest.raises(IntegrityError):
        add_agent(connection)


def test_an_agent_needs_a_project(connection: Connection) -> None:
    with pytest.raises(IntegrityError):
        add_agent(connection, project="unknown")


def test_a_version_is_read_as_it_was_written(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    assert agents.find_version(connection, "default", "echo", 1) == version
    assert agents.version_by_key(connection, version.key) == version
    assert (version.number, version.name, version.status) == (1, "echo:1", CREATING)
    assert (version.definition, version.metadata, version.description) == (
        DEFINITION,
        {"team": "a"},
        "A description.",
    )
    assert (version.digest, version.error_code, version.error_message, version.created_at) == (
        None,
        None,
        None,
        2000,
    )


@pytest.mark.parametrize(
    ("project", "name", "number"), [("other", "echo", 1), ("default", "no", 1), ("default", "echo", 2)]
)
def test_a_version_that_does_not_exist_is_none(connection: Connection, project: str, name: str, number: int) -> None:
    add_version(connection, add_agent(connection))
    assert agents.find_version(connection, project, name, number) is None
    assert agents.version_by_key(connection, 999) is None


def test_numbers_grow_for_each_agent_by_itself(connection: Connection) -> None:
    one, two = add_agent(connection), add_agent(connection, "two")
    assert [add_version(connection, agent).number for agent in (one, one, two, one, two)] == [1, 2, 1, 3, 2]


def test_numbers_are_never_used_twice_not_even_after_a_deletion(connection: Connection) -> None:
    agent = add_agent(connection)
    versions = [add_version(connection, agent) for _ in range(3)]
    for version in versions:
        agents.delete_version(connection, version.key)
    assert add_version(connection, agent).number == 4


def test_keys_are_never_used_twice_so_cursors_stay_in_order(connection: Connection) -> None:
    agent = add_agent(connection)
    version = add_version(connection, agent)
    agents.delete_version(connection, version.key)
    assert add_version(connection, agent).key > version.key
    agents.delete_agent(connection, agent)
    assert add_agent(connection).key > agent.key


def count(connection: Connection) -> tuple[int, ...]:
    tables = (schema.agents, schema.versions, schema.version_events, schema.sessions)
    return tuple(connection.execute(select(func.count()).select_from(table)).scalar_one() for table in tables)


def test_deleting_an_agent_removes_all_that_belongs_to_it(connection: Connection) -> None:
    for name in ("echo", "kept"):
        agent = add_agent(connection, name)
        version = add_version(connection, agent)
        agents.add_event(connection, version.key, VersionEvent(1, "pull", "Pulled.", None))
        sessions.create_session(connection, version, "session-1", "me", 1)
    assert count(connection) == (2, 2, 2, 2)
    kept = agents.find_agent(connection, "default", "kept")
    assert kept is not None
    agents.delete_agent(connection, kept)
    assert count(connection) == (1, 1, 1, 1)
    assert agents.find_agent(connection, "default", "echo") is not None


def test_deleting_a_version_leaves_the_agent_and_its_other_versions(connection: Connection) -> None:
    agent = add_agent(connection)
    gone, kept = add_version(connection, agent), add_version(connection, agent)
    for version in (gone, kept):
        agents.add_event(connection, version.key, VersionEvent(1, "pull", "Pulled.", None))
        sessions.create_session(connection, version, f"session-{version.number}", "me", 1)
    agents.delete_version(connection, gone.key)
    assert count(connection) == (1, 1, 1, 1)
    assert agents.versions_of_agent(connection, agent) == (kept,)


def test_the_latest_version_is_the_newest_that_is_not_being_deleted(connection: Connection) -> None:
    agent = add_agent(connection)
    assert agents.latest_version(connection, agent) is None
    versions = [add_version(connection, agent) for _ in range(4)]
    for version, status in zip(versions, (ACTIVE, ACTIVE, FAILED, DELETING), strict=True):
        agents.move_version(connection, version.key, status)

    def latest(status: VersionStatus | None = None) -> int | None:
        found = agents.latest_version(connection, agent, status)
        return None if found is None else found.number

    assert latest() == 3
    assert latest(ACTIVE) == 2
    assert latest(FAILED) == 3
    assert latest(DELETING) == 4
    assert latest(CREATING) is None


def test_versions_are_found_by_status_in_all_projects(connection: Connection) -> None:
    one = add_version(connection, add_agent(connection))
    two = add_version(connection, add_agent(connection, project="other"))
    agents.move_version(connection, add_version(connection, one.agent).key, ACTIVE)
    assert agents.versions_with_status(connection, CREATING) == (one, two)
    assert agents.versions_with_status(connection, FAILED) == ()


def test_a_status_and_its_reason_are_recorded(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    assert agents.move_version(connection, version.key, FAILED, "OutOfMemory", "It used too much.")
    found = agents.version_by_key(connection, version.key)
    assert found is not None
    assert (found.status, found.error_code, found.error_message) == (
        FAILED,
        "OutOfMemory",
        "It used too much.",
    )


def test_an_illegal_change_of_status_changes_nothing(connection: Connection) -> None:
    version = add_version(connection, add_agent(connection))
    agents.move_version(connection, version.key, ACTIVE)
    with pytest.raises(IllegalMove):
        agents.move_version(connection, version.key, FAILED, "code", "text")
    found = agents.version_by_key(connection, version.key)
    assert found is not None
    assert (found.status, found.error_code) == (ACTIVE, None)


def test_what_is_done_to_a_version_that_is_gone_does_nothing(connection: Connection) -> None:
    assert not agents.move_version(connection, 99, ACTIVE)
    agents.add_event(connection, 99, VersionEvent(1, "pull", "Pulled.", None))
    agents.set_digest(connection, 99, "sha256:0")
    agents.delete_version(connection, 99)
    assert count(connection) == (0, 0, 0, 0)


def test_digests_that_versions_are_pinned_to(connection: Connection) -> None:
    agent = add_agent(connection)
    versions = [add_version(connection, agent) for _ in range(3)]
    for version, digest in zip(versions, ("sha256:a", "sha256:a"), strict=False):
        agents.set_digest(connection, version.key, digest)
    assert agents.used_digests(connection) == {"sha256:a"}
    found = agents.version_by_key(connection, versions[0].key)
    assert found is not None
    assert found.digest == "sha256:a"


def test_events_are_read_in_the_order_they_were_written(connection: Connection) -> None:
    agent = add_agent(connection)
    version, other = add_version(connection, agent), add_version(connection, agent)
    events = [
        VersionEvent(2000, "resolve", "It is sha256:a.", 12.5),
        VersionEvent(1000, "output", "\x1b[31mred\nline", None),
        VersionEvent(3000, "failed", "It failed.", None, failed=True),
    ]
    for event in events:
        agents.add_event(connection, version.key, event)
    agents.add_event(connection, other.key, VersionEvent(1, "other", "", None))
    assert agents.list_events(connection, version.key) == tuple(events)


ITEMS = 7


@pytest.fixture(scope="module")
def listed(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Agents a0 to a6, with another project's between them; a0 has versions 1 to 7."""
    with _copy(migrated, tmp_path_factory.mktemp("listed") / "cupola.db") as connection:
        for number in range(ITEMS):
            add_agent(connection, f"a{number}")
            add_agent(connection, f"a{number}", "other")
        first = agents.find_agent(connection, "default", "a0")
        second = agents.find_agent(connection, "default", "a1")
        assert first is not None
        assert second is not None
        for _ in range(ITEMS):
            add_version(connection, first)
            add_version(connection, second)
        yield connection


@contextmanager
def _copy(source: Path, target: Path) -> Iterator[Connection]:
    target.write_bytes(source.read_bytes())
    engine = open_engine(target)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


CURSORS = st.none() | st.integers(0, ITEMS - 1)
DESCENDING = st.booleans()


@given(limit=st.integers(1, ITEMS + 2), descending=DESCENDING, after=CURSORS, before=CURSORS)
def test_a_page_is_what_a_list_would_give(
    listed: Connection, limit: int, descending: bool, after: int | None, before: int | None
) -> None:
    project = agents.list_agents(listed, "default", PageRequest(100, "asc")).items
    owner = project[0]
    of_agent = agents.list_versions(listed, owner, PageRequest(100, "asc")).items
    assert [agent.name for agent in project] == [f"a{number}" for number in range(ITEMS)]
    assert [version.number for version in of_agent] == [number + 1 for number in range(ITEMS)]

    order = list(range(ITEMS))[:: -1 if descending else 1]
    wanted = order[order.index(after) + 1 :] if after is not None else order
    stop = order[order.index(before) :] if before is not None else []
    wanted = [item for item in wanted if item not in stop]

    def request(keys: list[int]) -> PageRequest:
        cursor = {name: None if at is None else keys[at] for name, at in (("after", after), ("before", before))}
        return PageRequest(limit, "desc" if descending else "asc", **cursor)

    for items, page in (
        (project, agents.list_agents(listed, "default", request([agent.key for agent in project]))),
        (of_agent, agents.list_versions(listed, owner, request([version.key for version in of_agent]))),
    ):
        assert list(page.items) == [items[at] for at in wanted[:limit]]
        assert page.has_more == (len(wanted) > limit)


@given(limit=st.integers(1, ITEMS + 1), descending=DESCENDING)
def test_following_the_cursor_meets_every_item_once(listed: Connection, limit: int, descending: bool) -> None:
    seen: list[str] = []
    after: int | None = None
    while True:
        page = agents.list_agents(listed, "default", PageRequest(limit, "desc" if descending else "asc", after))
        seen += [agent.name for agent in page.items]
        if not page.has_more:
            break
        after = page.items[-1].key
    expected = [f"a{number}" for number in range(ITEMS)]
    assert seen == (expected[::-1] if descending else expected)
