"""What both stores of tasks do alike (contract section 4.14): the local one, and the platform's over HTTP."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cupola_agent.platform.api import Platform
from cupola_agent.stores.base import ConflictError, NotFoundError, PreconditionFailedError, RefusedError, StoreError
from cupola_agent.tasks.base import Lease, LeaseRequest, Task, TaskFilter, TaskStore
from cupola_agent.tasks.local import LocalTaskStore
from cupola_agent.tasks.platform import PlatformTaskStore

from agent.tests.fake_platform import running_platform

Json = dict[str, Any]

MINE = LeaseRequest("agent|session:s", "worker-1", 60)
RESTARTED = LeaseRequest("agent|session:s", "worker-2", 60)
FOREIGN = LeaseRequest("agent|session:other", "worker-1", 60)
STATUSES = ("pending", "in_progress", "suspended", "completed")


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local", "platform"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncGenerator[TaskStore, None]:
    local = LocalTaskStore(tmp_path, clock=clock)
    if request.param == "local":
        yield local
        await local.close()
        return
    async with running_platform(tmp_path) as fake:
        fake.tasks = local
        remote = PlatformTaskStore(Platform.from_environment(fake.variables))
        yield remote
        await remote.close()


def fields(task_id: str = "t1", **more: Any) -> Json:
    return {"id": task_id, "agent_name": "agent", "session_id": "s", "title": "A task", **more}


async def task_in(store: TaskStore, status: str, lease: LeaseRequest | None = MINE) -> Task:
    """A task `t1` in this status."""
    if status == "pending":
        return await store.create(fields(status="pending"))
    task = await store.create(fields(status="in_progress"), lease)
    return task if status == "in_progress" else await store.update("t1", {"status": status})


async def refusal(attempt: Any) -> tuple[int, str]:
    with pytest.raises(StoreError) as refused:
        await attempt
    return refused.value.status, refused.value.code


async def test_a_task_is_read_as_it_was_created(store: TaskStore, clock: Clock) -> None:
    given = fields(
        status="in_progress",
        description="what it is",
        payload={"input": {"n": 1.5, "text": "🏛"}, "nothing": None},
        tags={"task_name": "x"},
        source={"type": "agentserver.task", "name": "n"},
        attachments={"big": [1, 2, 3]},
    )
    created = await store.create(given, MINE)
    assert await store.get("t1") == created
    assert {name: getattr(created, name) for name in given} == given
    assert created.lease == Lease(
        MINE.owner, MINE.instance_id, 0, (clock.now + timedelta(seconds=60)).isoformat(), 0, clock.now.isoformat()
    )
    assert (created.created_at, created.started_at, created.completed_at) == (*[clock.now.isoformat()] * 2, None)
    assert created.etag


async def test_a_task_without_an_id_gets_one(store: TaskStore) -> None:
    named = fields()
    del named["id"]
    first, second = await store.create(named), await store.create(named)
    assert first.id != second.id
    assert (first.status, first.lease) == ("pending", None)


async def test_an_id_is_taken_once(store: TaskStore) -> None:
    await store.create(fields())
    assert await refusal(store.create(fields())) == (409, "task_already_exists")


async def test_there_is_no_unknown_task(store: TaskStore) -> None:
    for task_id in ("none", "../x", "é", "x" * 300):
        for attempt in (store.get(task_id), store.update(task_id, {}), store.delete(task_id)):
            with pytest.raises(NotFoundError):
                await attempt


ALLOWED = {
    ("pending", "in_progress"), ("pending", "completed"),
    ("in_progress", "pending"), ("in_progress", "in_progress"), ("in_progress", "suspended"), ("in_progress", "completed"),
    ("suspended", "pending"), ("suspended", "in_progress"), ("suspended", "suspended"), ("suspended", "completed"),
    ("completed", "completed"),
}  # fmt: skip


@pytest.mark.parametrize("before", STATUSES)
@pytest.mark.parametrize("after", STATUSES)
async def test_a_task_moves_along_the_table(store: TaskStore, before: str, after: str) -> None:
    task = await task_in(store, before)
    lease = MINE if (before, after) == ("in_progress", "pending") else None
    attempt = store.update("t1", {"status": after}, lease)
    if (before, after) in ALLOWED:
        assert (await attempt).status == after
    elif before == "completed":
        assert await refusal(attempt) == (409, "task_immutable")
    else:
        assert await refusal(attempt) == (409, "invalid_state_transition")
        assert await store.get("t1") == task


@pytest.mark.parametrize("status", ["suspended", "completed", "pending"])
async def test_leaving_the_work_gives_the_lease_back(store: TaskStore, status: str) -> None:
    await task_in(store, "in_progress")
    assert (await store.update("t1", {"status": status}, MINE if status == "pending" else None)).lease is None


@pytest.mark.parametrize("status", ["failed", "done", "FAILED", "", 7])
async def test_there_are_four_statuses(store: TaskStore, status: Any) -> None:
    await task_in(store, "in_progress")
    assert await refusal(store.update("t1", {"status": status})) == (400, "invalid_request")


@pytest.mark.parametrize("status", ["suspended", "completed", "failed"])
async def test_a_task_begins_pending_or_in_progress(store: TaskStore, status: str) -> None:
    assert await refusal(store.create(fields(status=status))) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("patch", "lease"),
    [
        ({"payload": {"x": 1}}, None),
        ({"tags": {"x": "1"}}, None),
        ({"status": "completed", "payload": {}}, None),
        ({"error": {"message": "m", "type": "t"}}, None),
        ({"status": "in_progress"}, None),
        ({}, MINE),
    ],
)
async def test_a_completed_task_does_not_change(store: TaskStore, patch: Json, lease: LeaseRequest | None) -> None:
    task = await task_in(store, "completed")
    assert await refusal(store.update("t1", patch, lease)) == (409, "task_immutable")
    assert await store.update("t1", {}) == task
    assert await store.update("t1", {"status": "completed"}) == task


async def test_a_failure_is_a_completed_task_with_an_error(store: TaskStore) -> None:
    await task_in(store, "in_progress")
    task = await store.update("t1", {"status": "completed", "error": {"message": "broke", "type": "server_error"}})
    assert task.error == {"message": "broke", "type": "server_error", "code": "error"}
    assert task.completed_at is not None
    assert (await store.list(TaskFilter(has_error=True))).tasks == (task,)


@pytest.mark.parametrize(
    ("request_", "seconds", "generation", "expiry_count"),
    [
        (MINE, 30, 0, 0),
        (MINE, 90, 0, 0),
        (RESTARTED, 30, 1, 0),
        (RESTARTED, 90, 1, 1),
        (FOREIGN, 60, 1, 1),
        (FOREIGN, 59, None, None),
    ],
)
async def test_who_may_take_a_lease_over_and_when(
    store: TaskStore, clock: Clock, request_: LeaseRequest, seconds: int, generation: int | None, expiry_count: int
) -> None:
    task = await task_in(store, "in_progress")
    clock.pass_by(seconds)
    attempt = store.update("t1", {}, request_)
    if generation is None:
        assert await refusal(attempt) == (409, "lease_held_by_another")
        assert await store.get("t1") == task
        return
    lease = (await attempt).lease
    assert lease == Lease(
        request_.owner, request_.instance_id, generation, (clock.now + timedelta(seconds=60)).isoformat(), expiry_count,
        clock.now.isoformat(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "patch", "lease", "answer"),
    [
        ("pending", {}, MINE, (400, "invalid_request")),
        ("suspended", {}, MINE, (400, "invalid_request")),
        ("in_progress", {"status": "suspended"}, MINE, (400, "invalid_request")),
        ("in_progress", {"status": "completed"}, MINE, (400, "invalid_request")),
        ("in_progress", {"status": "pending"}, None, (409, "lease_held_by_another")),
        ("in_progress", {"status": "pending"}, RESTARTED, (409, "lease_held_by_another")),
        ("in_progress", {"status": "pending"}, FOREIGN, (409, "lease_held_by_another")),
        ("in_progress", {"status": "pending"}, replace(MINE, duration_seconds=0), (400, "invalid_request")),
        ("pending", {"status": "in_progress"}, replace(MINE, duration_seconds=0), (400, "invalid_request")),
        ("pending", {}, replace(MINE, duration_seconds=0), (400, "invalid_request")),
        ("in_progress", {}, replace(RESTARTED, duration_seconds=0), (409, "lease_held_by_another")),
        ("in_progress", {}, replace(FOREIGN, duration_seconds=0), (409, "lease_held_by_another")),
        ("in_progress", {}, replace(MINE, duration_seconds=9), (400, "invalid_request")),
        ("in_progress", {}, replace(MINE, duration_seconds=3601), (400, "invalid_request")),
        ("in_progress", {}, replace(MINE, duration_seconds=-1), (400, "invalid_request")),
        ("in_progress", {}, replace(MINE, owner="x" * 257), (400, "invalid_request")),
        ("in_progress", {}, replace(MINE, instance_id=" "), (400, "invalid_request")),
    ],
)
async def test_where_a_lease_does_not_belong(
    store: TaskStore, status: str, patch: Json, lease: LeaseRequest | None, answer: tuple[int, str]
) -> None:
    task = await task_in(store, status)
    assert await refusal(store.update("t1", patch, lease)) == answer
    assert await store.get("t1") == task


async def test_a_pending_task_is_created_without_a_lease(store: TaskStore) -> None:
    assert await refusal(store.create(fields(status="pending"), MINE)) == (400, "invalid_request")


@pytest.mark.parametrize("status", ["pending", "suspended"])
async def test_a_task_is_taken_up_with_a_lease_of_generation_zero(store: TaskStore, status: str) -> None:
    await task_in(store, status)
    task = await store.update("t1", {"status": "in_progress"}, RESTARTED)
    assert task.lease is not None
    assert (task.lease.generation, task.lease.instance_id) == (0, "worker-2")


async def test_a_lease_given_up_is_free_at_once_for_another_owner(store: TaskStore) -> None:
    await task_in(store, "in_progress")
    await store.update("t1", {}, replace(MINE, duration_seconds=0))
    assert (await store.list(TaskFilter(lease_expired=True))).tasks[0].id == "t1"
    task = await store.update("t1", {}, FOREIGN)
    assert task.lease is not None
    assert (task.lease.owner, task.lease.generation, task.lease.expiry_count) == (FOREIGN.owner, 1, 1)


async def test_a_stale_etag_writes_nothing(store: TaskStore) -> None:
    task = await task_in(store, "in_progress")
    newer = await store.update("t1", {"payload": {"a": 1}}, if_match=task.etag)
    assert newer.etag != task.etag
    for attempt in (
        store.update("t1", {"payload": {"a": 2}}, if_match=task.etag),
        store.update("t1", {}, MINE, if_match=task.etag),
        store.delete("t1", force=True, if_match=task.etag),
    ):
        with pytest.raises(PreconditionFailedError) as stale:
            await attempt
        assert (stale.value.status, stale.value.code, stale.value.etag) == (412, "etag_mismatch", newer.etag)
    assert await store.get("t1") == newer


async def test_of_many_who_change_the_same_state_one_wins(store: TaskStore) -> None:
    task = await task_in(store, "in_progress")
    results = await asyncio.gather(
        *(store.update("t1", {"payload": {"winner": number}}, if_match=task.etag) for number in range(20)),
        return_exceptions=True,
    )
    (winner,) = (result for result in results if isinstance(result, Task))
    assert sum(isinstance(result, PreconditionFailedError) for result in results) == 19
    assert await store.get("t1") == winner


async def test_a_payload_is_merged_at_its_top_level(store: TaskStore) -> None:
    await store.create(fields(payload={"a": {"x": 1}, "b": 1}))
    task = await store.update("t1", {"payload": {"a": {"y": 2}, "c": None}})
    assert task.payload == {"a": {"y": 2}, "b": 1, "c": None}
    assert (await store.update("t1", {"payload": [1]})).payload == [1]
    assert (await store.update("t1", {"payload": None})).payload is None


@pytest.mark.parametrize("name", ["tags", "attachments"])
async def test_tags_and_attachments_are_merged_by_key_and_null_deletes(store: TaskStore, name: str) -> None:
    await store.create({**fields(), name: {"a": "1", "b": "2", "never": None}})
    task = await store.update("t1", {name: {"b": None, "c": "3", "none": None}})
    assert getattr(task, name) == {"a": "1", "c": "3"}
    assert getattr(await store.get("t1"), name) == {"a": "1", "c": "3"}
    assert getattr(await store.update("t1", {name: {"a": None, "c": None}}), name) is None
    await store.update("t1", {name: {"d": "4"}})
    assert getattr(await store.update("t1", {name: None}), name) is None
    assert getattr(await store.get("t1"), name) is None


async def test_attachments_stay_when_the_rest_changes(store: TaskStore) -> None:
    await store.create(fields(status="in_progress", attachments={"big": {"x": 1}}), MINE)
    assert (await store.update("t1", {}, MINE)).attachments == {"big": {"x": 1}}
    assert (await store.get("t1")).attachments == {"big": {"x": 1}}
    (listed,) = (await store.list(TaskFilter(), omit_attachment_values=True)).tasks
    assert listed.attachments == {"big": None}


async def test_why_a_task_is_suspended_is_told_while_it_is(store: TaskStore) -> None:
    await task_in(store, "in_progress")
    reason = {"suspension_reason": "run_completion"}
    assert await refusal(store.update("t1", reason)) == (400, "invalid_request")
    assert (await store.update("t1", {"status": "suspended", **reason})).suspension_reason == "run_completion"
    assert (await store.update("t1", {"payload": {}})).suspension_reason == "run_completion"
    assert (await store.update("t1", {"suspension_reason": "other"})).suspension_reason == "other"
    assert (await store.update("t1", {"status": "in_progress"}, MINE)).suspension_reason is None


@pytest.mark.parametrize("name", ["id", "agent_name", "session_id", "title", "description", "source", "unknown"])
async def test_what_a_task_is_does_not_change(store: TaskStore, name: str) -> None:
    task = await task_in(store, "in_progress")
    assert await refusal(store.update("t1", {name: {"type": "x"}})) == (400, "invalid_request")
    assert await store.get("t1") == task


def text_of(size: int) -> str:
    return "x" * size


LIMITS: list[tuple[str, Callable[[int], Any], int]] = [
    ("id", text_of, 128),
    ("agent_name", text_of, 128),
    ("session_id", text_of, 128),
    ("title", text_of, 256),
    ("description", text_of, 1024),
    ("tags", lambda size: {f"k{number}": "v" for number in range(size)}, 16),
    ("tags", lambda size: {text_of(size): "v"}, 64),
    ("tags", lambda size: {"k": text_of(size)}, 256),
    ("payload", lambda size: {"x": text_of(size - 8)}, 1024 * 1024),
    ("source", lambda size: {"type": text_of(size - 11)}, 4096),
    ("attachments", lambda size: {f"k{number}": 1 for number in range(size)}, 20),
    ("attachments", lambda size: {text_of(size): 1}, 64),
    ("attachments", lambda size: {"k": text_of(size - 2)}, 10 * 1024 * 1024),
]


@pytest.mark.parametrize(("name", "value", "limit"), LIMITS)
async def test_a_task_may_be_as_large_as_its_limits_and_no_larger(
    store: TaskStore, name: str, value: Callable[[int], Any], limit: int
) -> None:
    assert await refusal(store.create(fields(**{name: value(limit + 1)}))) == (400, "invalid_request")
    created = await store.create(fields(**{name: value(limit)}))
    assert getattr(await store.get(created.id), name) == value(limit)


async def test_limits_hold_for_what_a_patch_makes(store: TaskStore) -> None:
    await store.create(fields(payload={"a": text_of(600_000)}, tags={f"k{n}": "v" for n in range(16)}))
    assert await refusal(store.update("t1", {"payload": {"b": text_of(600_000)}})) == (400, "invalid_request")
    assert await refusal(store.update("t1", {"tags": {"one-more": "v"}})) == (400, "invalid_request")
    assert (await store.update("t1", {"tags": {"k0": None, "one-more": "v"}})).tags
    error = {"message": text_of(64 * 1024), "type": "t"}
    assert await refusal(store.update("t1", {"error": error})) == (400, "invalid_request")


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "a/b"}, {"id": "a b"}, {"id": "a\n"}, {"id": 7}, {"id": "é"},
        {"agent_name": ""}, {"agent_name": None}, {"agent_name": 1}, {"session_id": "  "}, {"title": 1},
        {"tags": {"a b": "v"}}, {"tags": {"k": 1}}, {"tags": ["k"]}, {"tags": {"k\n": "v"}},
        {"source": {}}, {"source": {"type": ""}}, {"source": "x"},
        {"attachments": {"a/b": 1}}, {"attachments": []}, {"attachments": {"": 1}},
    ],
)  # fmt: skip
async def test_what_is_no_task_is_refused(store: TaskStore, wrong: Json) -> None:
    with pytest.raises(RefusedError):
        await store.create(fields(**wrong))


@pytest.mark.parametrize(
    "wrong", ["text", {}, {"message": "m"}, {"message": " ", "type": "t"}, {"message": 1, "type": "t"}]
)
async def test_an_error_says_what_and_of_which_type(store: TaskStore, wrong: Any) -> None:
    await task_in(store, "in_progress")
    assert await refusal(store.update("t1", {"error": wrong})) == (400, "invalid_request")


async def test_a_task_that_is_not_completed_is_deleted_by_force_only(store: TaskStore) -> None:
    await task_in(store, "in_progress")
    assert await refusal(store.delete("t1")) == (400, "invalid_request")
    await store.delete("t1", force=True)
    with pytest.raises(NotFoundError):
        await store.get("t1")
    await task_in(store, "completed")
    await store.delete("t1")
    assert (await store.list(TaskFilter())).tasks == ()


async def test_tasks_are_listed_by_all_that_is_given(store: TaskStore, clock: Clock) -> None:
    async def ids(**wanted: Any) -> list[str]:
        return [task.id for task in (await store.list(TaskFilter(**wanted))).tasks]

    source = {"type": "agentserver.task"}
    await store.create(fields("old", status="in_progress", source=source), MINE)
    clock.pass_by(61)
    await store.create(fields("held", status="in_progress", source=source), FOREIGN)
    await store.create(fields("other", agent_name="other", tags={"a.b": "1", "c": "2"}, source={"type": "mine"}))
    await store.create({**fields("elsewhere", tags={"a.b": "1", "c": "3"}), "session_id": "s2"})
    assert await ids() == ["elsewhere", "other", "held", "old"]
    assert await ids(agent_name="agent") == ["elsewhere", "held", "old"]
    assert await ids(agent_name="agent", session_id="s") == ["held", "old"]
    assert await ids(status="pending") == ["elsewhere", "other"]
    assert await ids(lease_owner=MINE.owner, status="in_progress") == ["old"]
    assert await ids(source_type="agentserver.task") == ["held", "old"]
    assert await ids(lease_expired=True) == ["elsewhere", "other", "old"]
    assert await ids(lease_expired=False) == ["held"]
    assert await ids(tags={"a.b": "1"}) == ["elsewhere", "other"]
    assert await ids(tags={"a.b": "1", "c": "2"}) == ["other"]
    assert await ids(tags={"a.b": "' OR 1 --"}) == []
    assert await ids(has_error=True) == []
    assert await ids(status="nonsense") == []


@pytest.mark.parametrize("newest_first", [True, False])
async def test_paging_walks_over_every_task_once(store: TaskStore, newest_first: bool) -> None:
    names = [f"t{number}" for number in range(7)]
    for name in names:
        await store.create(fields(name))
    walked: list[str] = []
    more, after = True, None
    while more:
        page = await store.list(TaskFilter(), limit=3, after=after, newest_first=newest_first)
        walked += [task.id for task in page.tasks]
        more, after = page.has_more, walked[-1]
    assert walked == (names[::-1] if newest_first else names)
    assert (await store.list(TaskFilter(), after="unknown")).tasks == ()


async def test_a_page_has_at_most_a_hundred_tasks(store: TaskStore) -> None:
    await asyncio.gather(*(store.create(fields(f"t{number}")) for number in range(105)))
    page = await store.list(TaskFilter(), limit=1000)
    assert (len(page.tasks), page.has_more) == (100, True)
    assert await refusal(store.list(TaskFilter(), limit=0)) == (400, "invalid_request")


async def test_conflicts_are_of_one_kind(store: TaskStore) -> None:
    await task_in(store, "in_progress")
    with pytest.raises(ConflictError) as held:
        await store.update("t1", {}, FOREIGN)
    assert held.value.source == "user"
