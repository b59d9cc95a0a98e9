"""What agents keep, where the routes do not reach: appended items, sweeps, and what goes with an agent or a session."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, func, select

from cupola.domain.errors import CupolaError
from cupola.domain.principal import SandboxPrincipal, ServiceCaller
from cupola.domain.state_store import FOR_EVER, Content
from cupola.domain.stored_response import StoredItem, parse_new_response, parse_response
from cupola.domain.task import Moment
from cupola.storage import agents, responses, sessions, state, tasks
from cupola.storage.retention import sweep
from cupola.storage.schema import conversation_entries, items, metadata, state_items, task_attachments
from tests.unit.storage.samples import add_agent, add_version

DAY = 24 * 3600
NOW = 2_000_000_000


def caller(agent_key: int, user: str = "user") -> ServiceCaller:
    return ServiceCaller(SandboxPrincipal("default", agent_key, "0" * 32), user)


def body(response_id: str, *output: str, **fields: Any) -> bytes:
    fields = {"id": response_id, "status": "completed", **fields}
    return json.dumps({**fields, "output": [{"id": item_id} for item_id in output]}).encode()


def keep(connection: Connection, whose: ServiceCaller, text: bytes, *inputs: str, now: int = NOW) -> None:
    new = {"response": json.loads(text), "input_items": [{"id": item_id} for item_id in inputs]}
    responses.create_response(connection, whose, parse_new_response(json.dumps(new).encode()), "", now)


def keep_task(connection: Connection, sandbox: SandboxPrincipal, task_id: str, now: int, *, done: bool = True) -> None:
    moment = Moment(datetime.fromtimestamp(now, UTC), "etag")
    fields = {"id": task_id, "agent_name": "a", "session_id": "s", "attachments": {"a": 1}}
    tasks.create_task(connection, sandbox, fields, None, "spare", moment)
    if done:
        tasks.update_task(connection, sandbox, task_id, {"status": "completed"}, None, None, moment)


def count(connection: Connection) -> dict[str, int]:
    """How many rows each table of the services has, if any."""
    names = ("responses", "items", "conversation_entries", "tasks", "task_attachments", "state_stores", "state_items")
    found = {
        name: connection.execute(select(func.count()).select_from(metadata.tables[name])).scalar_one() for name in names
    }
    return {name: number for name, number in found.items() if number}


def test_items_of_no_response_take_their_place_in_a_conversation(connection: Connection) -> None:
    whose = caller(add_agent(connection).key)
    responses.append_items(connection, whose.owner, "c1", [StoredItem("a", b'{"id":"a"}'), StoredItem("", b"{}")])
    keep(connection, whose, body("r1", "out", conversation="c1"), "in")
    responses.append_items(connection, whose.owner, "c1", [StoredItem("b", b'{"id":"b"}')])
    assert responses.history_of_conversation(connection, whose, "c1") == ["a", "in", "out", "b"]
    assert responses.read_items(connection, whose, ["b", "a"]) == {"a": b'{"id":"a"}', "b": b'{"id":"b"}'}
    other = caller(whose.sandbox.agent_key, "other")
    assert responses.history_of_conversation(connection, other, "c1") == []


def test_a_snapshot_writes_only_the_items_that_changed(connection: Connection) -> None:
    whose = caller(add_agent(connection).key)

    def keys() -> list[int]:
        return list(connection.execute(select(items.c.key).order_by(items.c.key)).scalars())

    keep(connection, whose, body("r1", "a", "b", status="in_progress"))
    first = keys()
    responses.update_response(connection, whose, parse_response(body("r1", "a", "b", "c")), NOW)
    assert keys()[:2] == first
    responses.update_response(connection, whose, parse_response(body("r1", "a", "x", "c")), NOW)
    assert keys()[0] == first[0]
    _, output = responses.get_response(connection, whose, "r1")
    assert [json.loads(item)["id"] for item in output] == ["a", "x", "c"]


def test_a_create_whose_answer_was_lost_is_done_once(connection: Connection) -> None:
    agent = add_agent(connection)
    whose, other = caller(agent.key), caller(agent.key, "other")
    new = parse_new_response(b'{"response": {"id": "r1"}, "input_items": [{"id": "in"}]}')
    for _ in range(2):
        responses.create_response(connection, whose, new, "request", NOW)
    for again, request_id in ((whose, "another"), (whose, ""), (other, "request")):
        with pytest.raises(CupolaError) as refused:
            responses.create_response(connection, again, new, request_id, NOW)
        assert (refused.value.status, refused.value.code) == (409, "already_exists")
    assert count(connection) == {"responses": 1, "items": 1}


def test_the_same_update_twice_changes_nothing(connection: Connection) -> None:
    whose = caller(add_agent(connection).key)
    keep(connection, whose, body("r1", status="in_progress", conversation="c1"), "in")
    before: list[Any] = []
    for _ in range(2):
        responses.update_response(connection, whose, parse_response(body("r1", "out", conversation="c1")), NOW)
        rows = [list(connection.execute(select(table))) for table in (items, conversation_entries)]
        assert before in ([], rows)
        before = rows


def test_what_is_old_is_swept_in_small_parts(connection: Connection) -> None:
    whose = caller(add_agent(connection).key)
    old, young = NOW - 30 * DAY - 1, NOW - 30 * DAY
    for number in range(3):
        keep(connection, whose, body(f"old{number}", conversation="c1"), "in", now=old)
        keep_task(connection, whose.sandbox, f"old{number}", old)
    keep(connection, whose, body("young"), now=young)
    keep_task(connection, whose.sandbox, "young", young)
    keep_task(connection, whose.sandbox, "unfinished", old, done=False)
    assert [sweep(connection, NOW, 2), sweep(connection, NOW, 2), sweep(connection, NOW, 2)] == [True, False, False]
    assert count(connection) == {"responses": 1, "tasks": 2, "task_attachments": 2}
    assert responses.get_response(connection, whose, "young")
    assert tasks.get_task(connection, whose.sandbox, "unfinished").status == "pending"


def test_state_is_swept_when_its_time_is_over(connection: Connection) -> None:
    whose = caller(add_agent(connection).key)
    for name, ttl in (("short", 10), ("long", FOR_EVER)):
        store = state.create_store(
            connection, whose.sandbox, name, {"item_ttl_seconds": ttl}, user_isolation=False, now=NOW
        )
        state.put_item(connection, store, "", "k", Content(b"{}", {}), None, "etag", NOW)
    assert sweep(connection, NOW + 9, 100) is False
    assert count(connection)["state_items"] == 2
    sweep(connection, NOW + 10, 100)
    assert connection.execute(select(state_items.c.expires_at)).scalars().all() == [None]


def test_an_agent_is_deleted_with_all_it_keeps(connection: Connection) -> None:
    agent, other = add_agent(connection), add_agent(connection, "other")
    for key in (agent.key, other.key):
        whose = ServiceCaller(SandboxPrincipal("default", key, str(key) * 32), "user")
        keep(connection, whose, body(f"r{key}", "out", conversation="c1"), "in")
        keep_task(connection, whose.sandbox, "t1", NOW)
        store = state.create_store(connection, whose.sandbox, "notes", {}, user_isolation=False, now=NOW)
        state.put_item(connection, store, "", "k", Content(b"{}", {}), None, "etag", NOW)
    before = count(connection)
    agents.delete_agent(connection, agent)
    assert count(connection) == {name: number // 2 for name, number in before.items()}
    assert connection.execute(select(task_attachments.c.task_key)).scalars().all() == [2]


def test_a_session_is_deleted_with_its_tasks_and_its_responses_stay(connection: Connection) -> None:
    agent = add_agent(connection)
    version = add_version(connection, agent)
    session = sessions.create_session(connection, version, "sess_1", "ada", NOW)
    whose = ServiceCaller(SandboxPrincipal("default", agent.key, session.guid), "user")
    keep(connection, whose, body("r1"))
    for sandbox in (whose.sandbox, caller(agent.key).sandbox):
        keep_task(connection, sandbox, "t1", NOW)
    sessions.delete_sessions(connection, (session.key,))
    assert count(connection) == {"responses": 1, "tasks": 1, "task_attachments": 1}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"response": 1}',
        b'{"response": {"id": 7}}',
        b'{"response": {"id": "r1", "output": [1]}}',
        b'{"response": {"id": "r1", "output": {}}}',
        b'{"response": {"id": "r1"}, "input_items": ["text"]}',
        b'{"response": {"id": "r1"}, "history_item_ids": [1]}',
        b'{"response": {"id": "r1", "status": "\xff"}}',
        b'{"response": {"id": "r1", "x": \xff}}',
        b'{"response": {"id": "r1", "x": "\\ud83c"}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_response_is_refused(text: bytes) -> None:
    with pytest.raises(CupolaError) as refused:
        parse_new_response(text)
    assert (refused.value.status, refused.value.code) == (400, "invalid_request")


def test_what_is_kept_is_the_text_that_came() -> None:
    text = b'{"id":"r1","n":1.50,"x":"\\u00e9","output":[{"id":"o1" , "x":1e400}]}'
    parsed = parse_response(text)
    assert parsed.envelope == b'{"id":"r1","n":1.50,"x":"\\u00e9"}'
    assert parsed.output == (StoredItem("o1", b'{"id":"o1" , "x":1e400}'),)
