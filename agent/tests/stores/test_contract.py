"""What each store of responses does alike: in memory, in a file, on the platform."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cupola_agent.call import Caller
from cupola_agent.platform.api import Platform
from cupola_agent.stores.base import AlreadyExistsError, NotFoundError, RefusedError, ResponseStore
from cupola_agent.stores.local import LocalResponseStore
from cupola_agent.stores.memory import MemoryResponseStore
from cupola_agent.stores.platform import PlatformResponseStore

from agent.tests.fake_platform import running_platform

Json = dict[str, Any]

NOBODY = Caller()
ALICE = Caller("alice", "alice:1")
BOB = Caller("bob", "bob:1")

HOSTILE = ["../../etc/passwd", "a/b?c=d#e", "%2e%2e", "' OR 1=1 --", "a\u0000b", "naïve\u2028id", "x" * 2000, "\n\r\n"]


@pytest.fixture(params=["memory", "local", "platform"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[ResponseStore, None]:
    if request.param == "memory":
        yield MemoryResponseStore()
    elif request.param == "local":
        local = LocalResponseStore(tmp_path)
        yield local
        await local.close()
    else:
        async with running_platform(tmp_path) as platform:
            remote = PlatformResponseStore(Platform.from_environment(platform.variables))
            yield remote
            await remote.close()


def response(response_id: str, output: Sequence[Json] = (), **fields: Any) -> Json:
    return {"id": response_id, "object": "response", "status": "completed", "output": list(output), **fields}


def message(item_id: str, text: str = "hello") -> Json:
    return {"id": item_id, "type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


async def turn(
    store: ResponseStore, number: int, caller: Caller = NOBODY, previous: str | None = None, **fields: Any
) -> str:
    """One whole turn with one item in and one out, as the core makes it."""
    response_id = f"r{number}"
    history = await store.history_item_ids(caller, previous_response_id=previous, conversation_id=None)
    started = response(response_id, status="in_progress", previous_response_id=previous, **fields)
    await store.create(started, [message(f"in{number}")], history, caller)
    done = response(response_id, [message(f"out{number}")], previous_response_id=previous, **fields)
    await store.update(done, caller)
    return response_id


async def page(store: ResponseStore, response_id: str, caller: Caller = NOBODY, **options: Any) -> list[str]:
    asked: dict[str, Any] = {"limit": 100, "ascending": True, "after": None, "before": None, **options}
    found = await store.input_items(response_id, caller, **asked)
    return [item["id"] for item in found.items]


async def test_a_response_is_read_as_it_was_written(store: ResponseStore) -> None:
    written = response(
        "r1",
        [message("o1", 'quotes " and \\ and 🏛'), {"type": "without_an_id", "n": 1.5}],
        metadata={"_internal_metadata": "kept"},
        usage=None,
        conversation={"id": "c1"},
    )
    written["output"][0]["internal_metadata"] = {"kept": True}
    await store.create(written, [], [], NOBODY)
    assert await store.get("r1", NOBODY) == written


async def test_an_update_replaces_the_whole_response(store: ResponseStore) -> None:
    await store.create(response("r1", [message("o1"), message("o2")], status="in_progress", extra=1), [], [], NOBODY)
    changed = response("r1", [message("o2", "new"), message("o3")])
    await store.update(changed, NOBODY)
    assert await store.get("r1", NOBODY) == changed
    assert await store.items(["o1", "o2", "o3"], NOBODY) == [None, message("o2", "new"), message("o3")]


async def test_changing_what_was_read_changes_nothing_that_is_kept(store: ResponseStore) -> None:
    await store.create(response("r1", [message("o1")]), [], [], NOBODY)
    read = await store.get("r1", NOBODY)
    read["output"][0]["content"].clear()
    assert await store.get("r1", NOBODY) == response("r1", [message("o1")])


async def test_an_id_is_taken_once_whoever_asks(store: ResponseStore) -> None:
    await store.create(response("r1"), [], [], ALICE)
    for caller in (ALICE, BOB, NOBODY):
        with pytest.raises(AlreadyExistsError) as refused:
            await store.create(response("r1", [message("o9")]), [], [], caller)
        assert (refused.value.status, refused.value.source) == (409, "user")
    assert await store.get("r1", ALICE) == response("r1")


async def test_nothing_is_found_under_an_unknown_id(store: ResponseStore) -> None:
    for attempt in (
        store.get("none", NOBODY),
        store.update(response("none"), NOBODY),
        store.delete("none", NOBODY),
        store.input_items("none", NOBODY, limit=1, ascending=True, after=None, before=None),
        store.history_item_ids(NOBODY, previous_response_id="none", conversation_id=None),
    ):
        with pytest.raises(NotFoundError) as missing:
            await attempt
        assert (missing.value.status, missing.value.source) == (404, "user")


async def test_a_deleted_response_is_gone_with_its_items(store: ResponseStore) -> None:
    await turn(store, 1)
    await store.delete("r1", NOBODY)
    with pytest.raises(NotFoundError):
        await store.get("r1", NOBODY)
    with pytest.raises(NotFoundError):
        await store.delete("r1", NOBODY)
    assert await store.items(["in1", "out1"], NOBODY) == [None, None]
    await store.create(response("r1"), [], [], NOBODY)


async def test_an_item_that_two_responses_hold_outlives_one_of_them(store: ResponseStore) -> None:
    await store.create(response("r1"), [message("same")], [], NOBODY)
    await store.create(response("r2"), [message("same")], [], NOBODY)
    await store.delete("r2", NOBODY)
    assert await store.items(["same"], NOBODY) == [message("same")]
    await store.delete("r1", NOBODY)
    assert await store.items(["same"], NOBODY) == [None]


@pytest.mark.parametrize("other", [BOB, NOBODY])
async def test_what_a_user_made_does_not_exist_for_others(store: ResponseStore, other: Caller) -> None:
    await turn(store, 1, ALICE, conversation={"id": "c1"})
    for attempt in (
        store.get("r1", other),
        store.update(response("r1"), other),
        store.delete("r1", other),
        store.input_items("r1", other, limit=1, ascending=True, after=None, before=None),
        store.history_item_ids(other, previous_response_id="r1", conversation_id=None),
    ):
        with pytest.raises(NotFoundError):
            await attempt
    assert await store.items(["in1", "out1"], other) == [None, None]
    assert await store.history_item_ids(other, previous_response_id=None, conversation_id="c1") == []
    assert await store.history_item_ids(ALICE, previous_response_id=None, conversation_id="c1") == ["in1", "out1"]


async def test_what_was_made_without_a_user_is_open_to_everyone(store: ResponseStore) -> None:
    await turn(store, 1)
    assert (await store.get("r1", ALICE))["id"] == "r1"
    assert await store.items(["in1"], BOB) == [message("in1")]


async def test_nobody_puts_another_item_in_the_place_of_a_users(store: ResponseStore) -> None:
    await store.create(response("r1"), [message("i1", "alice's")], [], ALICE)
    await store.create(response("r2"), [message("i1", "bob's")], [], BOB)
    await store.create(response("r3"), [message("i1", "nobody's")], [], NOBODY)
    for caller, text in ((ALICE, "alice's"), (BOB, "bob's"), (NOBODY, "nobody's")):
        assert await store.items(["i1"], caller) == [message("i1", text)]


async def test_items_come_in_the_order_asked_for(store: ResponseStore) -> None:
    await store.create(response("r1"), [message("a"), message("b")], [], NOBODY)
    asked = ["b", "none", "a", "b"]
    assert await store.items(asked, NOBODY) == [message("b"), None, message("a"), message("b")]
    assert await store.items([], NOBODY) == []


async def test_more_items_than_one_batch_are_found(store: ResponseStore) -> None:
    ids = [f"i{number}" for number in range(250)]
    await store.create(response("r1"), [message(item_id) for item_id in ids], [], NOBODY)
    found = await store.items(list(reversed(ids)), NOBODY)
    assert [item["id"] for item in found if item] == list(reversed(ids))


async def test_the_history_of_a_chain_is_all_that_came_before_oldest_first(store: ResponseStore) -> None:
    previous = None
    for number in range(4):
        previous = await turn(store, number, previous=previous)
    history = await store.history_item_ids(NOBODY, previous_response_id="r3", conversation_id=None)
    assert history == ["in0", "out0", "in1", "out1", "in2", "out2", "in3", "out3"]
    fork = await store.history_item_ids(NOBODY, previous_response_id="r1", conversation_id=None)
    assert fork == ["in0", "out0", "in1", "out1"]


@pytest.mark.parametrize(("limit", "expected"), [(-1, 4), (0, 0), (1, 1), (3, 3), (4, 4), (100, 4)])
async def test_a_limited_history_keeps_the_newest(store: ResponseStore, limit: int, expected: int) -> None:
    await turn(store, 1)
    await turn(store, 2, previous="r1")
    history = await store.history_item_ids(NOBODY, previous_response_id="r2", conversation_id=None, limit=limit)
    assert history == ["in1", "out1", "in2", "out2"][4 - expected :]


async def test_a_chain_stays_readable_when_an_older_response_is_deleted(store: ResponseStore) -> None:
    await turn(store, 1)
    await turn(store, 2, previous="r1")
    await store.delete("r1", NOBODY)
    history = await store.history_item_ids(NOBODY, previous_response_id="r2", conversation_id=None)
    items = await store.items(history, NOBODY)
    assert [item["id"] for item in items if item] == ["in2", "out2"]
    assert await page(store, "r2") == ["in2"]


async def test_a_conversation_has_the_items_of_its_finished_responses_in_the_order_they_finished(
    store: ResponseStore,
) -> None:
    async def items() -> list[str]:
        return await store.history_item_ids(NOBODY, previous_response_id=None, conversation_id="c1")

    assert await items() == []
    place: Json = {"conversation": {"id": "c1"}}
    await store.create(response("r1", status="in_progress", **place), [message("in1")], [], NOBODY)
    await store.create(response("r2", status="queued", **place), [message("in2")], [], NOBODY)
    assert await items() == []
    await store.update(response("r2", [message("out2")], **place), NOBODY)
    await store.update(response("r1", [message("out1")], status="failed", **place), NOBODY)
    await store.update(response("r2", [message("out2"), message("more2")], **place), NOBODY)
    assert await items() == ["in2", "out2", "more2", "in1", "out1"]
    await store.create(response("r3", [message("out3")], conversation="c1"), [message("in3")], [], NOBODY)
    await store.delete("r2", NOBODY)
    assert await items() == ["in1", "out1", "in3", "out3"]


async def test_a_previous_response_and_a_conversation_together_give_each_item_once(store: ResponseStore) -> None:
    await turn(store, 1)
    await turn(store, 2, previous="r1", conversation={"id": "c1"})
    history = await store.history_item_ids(NOBODY, previous_response_id="r2", conversation_id="c1")
    assert history == ["in1", "out1", "in2", "out2"]


async def test_input_items_are_history_and_input_without_the_output(store: ResponseStore) -> None:
    await turn(store, 1)
    await turn(store, 2, previous="r1")
    assert await page(store, "r2") == ["in1", "out1", "in2"]
    assert await page(store, "r2", ascending=False) == ["in2", "out1", "in1"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"limit": 2}, ["i0", "i1"]),
        ({"limit": 2, "after": "i1"}, ["i2", "i3"]),
        ({"limit": 2, "ascending": False}, ["i4", "i3"]),
        ({"limit": 2, "ascending": False, "after": "i1"}, ["i0"]),
        ({"before": "i2"}, ["i0", "i1"]),
        ({"before": "i2", "ascending": False}, ["i4", "i3"]),
        ({"after": "i0", "before": "i3"}, ["i1", "i2"]),
        ({"after": "i4"}, []),
        ({"after": "unknown"}, ["i0", "i1", "i2", "i3", "i4"]),
        ({"before": "unknown", "limit": 1}, ["i0"]),
    ],
)
async def test_input_items_are_paged(store: ResponseStore, options: Json, expected: list[str]) -> None:
    await store.create(response("r1"), [message(f"i{number}") for number in range(5)], [], NOBODY)
    assert await page(store, "r1", **options) == expected


@pytest.mark.parametrize("limit", [1, 3, 99, 100])
async def test_paging_walks_over_every_input_item_once(store: ResponseStore, limit: int) -> None:
    ids = [f"i{number}" for number in range(300 if limit > 3 else 7)]
    await store.create(response("r1"), [message(item_id) for item_id in ids], [], NOBODY)
    walked: list[str] = []
    more, after = True, None
    while more:
        found = await store.input_items("r1", NOBODY, limit=limit, ascending=True, after=after, before=None)
        walked += [item["id"] for item in found.items]
        more, after = found.has_more, walked[-1]
    assert walked == ids


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_ids_of_any_text_are_only_ids(store: ResponseStore, hostile: str) -> None:
    await store.create(response("r1", [message(hostile)], conversation=hostile), [], [hostile], NOBODY)
    assert await store.items([hostile], NOBODY) == [message(hostile)]
    assert await store.history_item_ids(NOBODY, previous_response_id=None, conversation_id=hostile) == [hostile]
    with pytest.raises(NotFoundError):
        await store.get(hostile, NOBODY)
    await store.create(response(hostile), [], [], NOBODY)
    assert (await store.get(hostile, NOBODY))["id"] == hostile
    await store.delete(hostile, NOBODY)


@pytest.mark.parametrize(
    "broken", [{"id": "r1", "output": [], "x": object()}, {"output": []}, {"id": "", "output": []}]
)
async def test_what_is_no_response_is_refused(store: ResponseStore, broken: Json) -> None:
    with pytest.raises(RefusedError):
        await store.create(broken, [], [], NOBODY)


async def test_many_at_once_do_not_disturb_each_other(store: ResponseStore) -> None:
    callers = [Caller(f"user{number}", f"user{number}:1") for number in range(5)]

    async def chat(user: int) -> None:
        caller, previous = callers[user], None
        for step in range(5):
            previous = await turn(store, user * 100 + step, caller, previous, conversation={"id": "shared"})

    await asyncio.gather(*(chat(user) for user in range(5)))
    for user, caller in enumerate(callers):
        history = await store.history_item_ids(caller, previous_response_id=None, conversation_id="shared")
        assert history == [f"{side}{user * 100 + step}" for step in range(5) for side in ("in", "out")]
