"""What both state stores do alike (contract section 4.15): the local one, and the platform's over HTTP."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cupola_agent.call import Caller, call_scope
from cupola_agent.platform.api import Platform
from cupola_agent.state import (
    AlreadyExistsError,
    NotFoundError,
    PreconditionFailedError,
    RefusedError,
    StateStore,
)
from cupola_agent.state.base import StateBackend
from cupola_agent.state.local import LocalStateBackend
from cupola_agent.state.platform import PlatformStateBackend

from agent.tests.fake_platform import running_platform

ALICE = Caller("alice", "alice:1")
BOB = Caller("bob", "bob:1")
HOSTILE = ["../../etc", "a/b?c=d#e", "' OR 1=1 --", "a\u0000b", "🏛" * 128, "\r\nx: y", "items:keys", "*"]


@dataclass
class Clock:
    now: float = 1_900_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["local", "platform"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncGenerator[StateBackend, None]:
    local = LocalStateBackend(tmp_path, clock=clock)
    if request.param == "local":
        yield local
        await local.close()
        return
    async with running_platform(tmp_path) as fake:
        fake.state = local
        remote = PlatformStateBackend(Platform.from_environment(fake.variables))
        yield remote
        await remote.close()


@pytest.fixture
def store(backend: StateBackend) -> StateStore:
    return StateStore("notes", backend=backend)


async def keys(store: StateStore, **options: Any) -> list[str]:
    return [key async for key in store.keys(**options)]


async def test_a_value_is_read_as_it_was_put(store: StateStore) -> None:
    value = {"text": "🏛", "list": [1, 2.5, None, {"deep": True}], "": {}}
    await store.put("k", value)
    assert await store.get("k") == value
    await store.put("k", {})
    assert await store.get("k") == {}


async def test_there_is_no_value_under_an_unknown_key(store: StateStore) -> None:
    assert await store.get("none") is None
    assert await store.item("none") is None
    await store.delete("none")


async def test_a_key_is_created_once(store: StateStore) -> None:
    await store.create("k", {"n": 1})
    with pytest.raises(AlreadyExistsError) as taken:
        await store.create("k", {"n": 2})
    assert taken.value.status == 409
    assert await store.get("k") == {"n": 1}
    await store.delete("k")
    await store.create("k", {"n": 3})
    assert await store.get("k") == {"n": 3}


async def test_a_write_over_another_state_is_refused_and_tells_the_current_one(store: StateStore) -> None:
    first = await store.put("k", {"n": 1})
    second = await store.put("k", {"n": 2}, if_match=first.etag)
    for attempt in (store.put("k", {"n": 3}, if_match=first.etag), store.delete("k", if_match=first.etag)):
        with pytest.raises(PreconditionFailedError) as stale:
            await attempt
        assert (stale.value.status, stale.value.etag) == (412, second.etag)
    await store.put("k", {"n": 4}, if_match="*")
    item = await store.item("k")
    assert item is not None
    assert item.value == {"n": 4}
    await store.delete("k", if_match=item.etag)
    for if_match in ("*", item.etag):
        for attempt in (store.put("k", {}, if_match=if_match), store.delete("k", if_match=if_match)):
            with pytest.raises(PreconditionFailedError) as gone:
                await attempt
            assert gone.value.etag is None


async def test_of_many_who_change_the_same_state_one_wins(store: StateStore) -> None:
    key = await store.put("k", {})
    results = await asyncio.gather(
        *(store.put("k", {"n": number}, if_match=key.etag) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(result, PreconditionFailedError) for result in results) == 19


async def test_an_item_tells_when_it_was_made_and_changed(store: StateStore, clock: Clock) -> None:
    await store.put("k", {}, tags={"a": "1"})
    clock.now += 5
    await store.put("k", {"n": 1}, tags={"b": "2"})
    item = await store.item("k")
    assert item is not None
    assert (item.key.created_at, item.key.updated_at, item.key.tags) == (1_900_000_000, 1_900_000_005, {"b": "2"})


async def test_keys_come_newest_first_and_by_tags(store: StateStore) -> None:
    for number in range(5):
        await store.put(f"k{number}", {}, tags={"parity": str(number % 2), "a.b": "x"})
    await store.put("k0", {"again": True}, tags={"parity": "0"})
    assert await keys(store) == ["k4", "k3", "k2", "k1", "k0"]
    assert await keys(store, newest_first=False) == ["k0", "k1", "k2", "k3", "k4"]
    assert await keys(store, tags={"parity": "1"}) == ["k3", "k1"]
    assert await keys(store, tags={"parity": "0", "a.b": "x"}) == ["k4", "k2"]
    assert await keys(store, tags={"parity": "' OR 1 --"}) == []


async def test_more_keys_than_a_page_are_walked_over_once(store: StateStore) -> None:
    names = [f"k{number}" for number in range(230)]
    await store.put("first", {})
    await asyncio.gather(*(store.put(name, {}) for name in names))
    walked = await keys(store, newest_first=False)
    assert walked[0] == "first"
    assert sorted(walked[1:]) == sorted(names)


@pytest.mark.parametrize("after", ["unknown", "it_999999", "it_x", "it_99999999999999999999", "it_-1"])
async def test_nothing_follows_an_unknown_cursor(store: StateStore, after: str) -> None:
    await store.put("k", {})
    page = await store.page(after=after)
    assert (page.keys, page.has_more) == ((), False)


async def test_an_item_is_forgotten_some_time_after_it_was_written_last(backend: StateBackend, clock: Clock) -> None:
    store = StateStore("short", ttl_seconds=10, backend=backend)
    first = await store.put("kept", {"n": 1})
    gone = await store.put("gone", {})
    clock.now += 9
    await store.put("kept", {"n": 2})
    clock.now += 1
    assert await keys(store) == ["kept"]
    assert await store.get("gone") is None
    with pytest.raises(PreconditionFailedError):
        await store.put("gone", {}, if_match=gone.etag)
    clock.now += 9
    assert await keys(store) == []
    again = await store.create("kept", {"n": 3})
    assert again.id != first.id
    assert again.created_at == int(clock.now)


async def test_without_a_lifetime_an_item_stays(backend: StateBackend, clock: Clock) -> None:
    store = StateStore("long", ttl_seconds=-1, backend=backend)
    await store.put("k", {"n": 1})
    clock.now += 100 * 365 * 24 * 3600
    assert await store.get("k") == {"n": 1}


async def test_users_have_keys_of_their_own_where_the_store_says_so(backend: StateBackend) -> None:
    store = StateStore("private", user_isolation=True, backend=backend)
    for caller in (ALICE, BOB):
        with call_scope(caller):
            await store.create("k", {"of": caller.user_id})
    with call_scope(ALICE):
        assert await store.get("k") == {"of": "alice"}
        assert await keys(store) == ["k"]
        await store.delete("k")
        assert await keys(store) == []
    with call_scope(BOB):
        assert await store.get("k") == {"of": "bob"}
    assert await store.get("k") is None


async def test_an_agent_may_act_for_a_user_by_name(backend: StateBackend) -> None:
    for_alice = StateStore("private", user_isolation=True, user_id="alice", backend=backend)
    await for_alice.put("k", {"of": "alice"})
    with call_scope(ALICE):
        assert await StateStore("private", backend=backend).get("k") == {"of": "alice"}
    with call_scope(BOB):
        assert await StateStore("private", backend=backend).get("k") is None
        assert await for_alice.get("k") == {"of": "alice"}


async def test_users_share_keys_where_the_store_does_not_say_otherwise(store: StateStore) -> None:
    with call_scope(ALICE):
        await store.put("k", {"of": "all"})
    with call_scope(BOB):
        assert await store.get("k") == {"of": "all"}


async def test_one_store_does_not_see_the_keys_of_another(backend: StateBackend) -> None:
    one, two = StateStore("one", backend=backend), StateStore("two", backend=backend)
    await one.put("k", {"of": "one"})
    assert await two.get("k") is None
    await two.put("k", {"of": "two"})
    await one.drop()
    assert await two.get("k") == {"of": "two"}
    assert await one.get("k") is None


async def test_settings_count_when_the_store_is_made(backend: StateBackend) -> None:
    first = StateStore("s", user_isolation=True, ttl_seconds=60, description="d", tags={"a": "1"}, backend=backend)
    made = await first.info()
    assert (made.name, made.user_isolation, made.item_ttl_seconds) == ("s", True, 60)
    assert (made.description, made.tags) == ("d", {"a": "1"})
    assert await StateStore("s", ttl_seconds=99, backend=backend).info() == made


async def test_a_store_is_made_once_by_many_at_once(backend: StateBackend) -> None:
    stores = [StateStore("s", ttl_seconds=60 + number, backend=backend) for number in range(10)]
    infos = await asyncio.gather(*(store.info() for store in stores))
    assert len({info.item_ttl_seconds for info in infos}) == 1


async def test_a_store_can_be_described_anew(store: StateStore, clock: Clock) -> None:
    await store.info()
    clock.now += 7
    changed = await store.update(description="new", tags={"b": "2"}, ttl_seconds=5)
    assert (changed.description, changed.tags, changed.item_ttl_seconds) == ("new", {"b": "2"}, 5)
    assert changed.updated_at - changed.created_at == 7
    cleared = await store.update(description="", tags={})
    assert (cleared.description, cleared.tags, cleared.item_ttl_seconds) == (None, {}, 5)
    await store.put("k", {})
    clock.now += 5
    assert await store.get("k") is None


async def test_deleting_a_store_is_idempotent_and_using_it_makes_it_anew(
    backend: StateBackend, store: StateStore
) -> None:
    await store.put("k", {})
    await store.drop()
    await store.drop()
    with pytest.raises(NotFoundError):
        await backend.get_store("notes", Caller())
    assert await keys(store) == []
    await store.put("k", {"n": 1})
    assert await store.get("k") == {"n": 1}


async def test_a_store_that_does_not_exist_has_no_items(backend: StateBackend) -> None:
    nobody = Caller()
    for attempt in (
        backend.get_store("none", nobody),
        backend.update_store("none", {}, nobody),
        backend.get_item("none", "k", nobody, None),
        backend.put_item("none", "k", {}, {}, nobody, None, None),
        backend.create_item("none", "k", {}, {}, nobody, None),
        backend.delete_item("none", "k", nobody, None, None),
        backend.list_keys("none", nobody, None, tags={}, limit=1, after=None, newest_first=True),
    ):
        with pytest.raises(NotFoundError):
            await attempt


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_names_and_keys_of_any_text_are_only_names(backend: StateBackend, hostile: str) -> None:
    store = StateStore(hostile, backend=backend)
    await store.put(hostile, {"n": 1})
    assert await store.get(hostile) == {"n": 1}
    assert await keys(store) == [hostile]
    assert (await store.info()).name == hostile
    await store.delete(hostile)
    await store.drop()


@pytest.mark.parametrize("key", ["", "x" * 129, "\ud800", 7])
async def test_keys_have_limits(store: StateStore, key: Any) -> None:
    for attempt in (store.put(key, {}), store.create(key, {}), store.get(key), store.delete(key)):
        with pytest.raises(RefusedError) as refused:
            await attempt
        assert refused.value.status == 400


@pytest.mark.parametrize("name", ["", "x" * 129])
async def test_names_have_limits(backend: StateBackend, name: str) -> None:
    with pytest.raises(RefusedError):
        await StateStore(name, backend=backend).put("k", {})


@pytest.mark.parametrize("value", [None, 1, "text", [1], {"x": object()}])
async def test_a_value_is_a_json_object(store: StateStore, value: Any) -> None:
    with pytest.raises(RefusedError):
        await store.put("k", value)
    with pytest.raises(RefusedError):
        await store.create("k", value)


async def test_a_value_has_at_most_a_megabyte(store: StateStore) -> None:
    largest = {"x": "y" * (1024 * 1024 - 8)}
    await store.put("k", largest)
    assert await store.get("k") == largest
    with pytest.raises(RefusedError):
        await store.put("k", {"x": "y" * (1024 * 1024 - 7)})


@pytest.mark.parametrize(
    "tags", [{f"k{number}": "v" for number in range(17)}, {"a b": "v"}, {"k" * 65: "v"}, {"k": "v" * 257}, {"k": None}]
)
async def test_tags_have_limits(store: StateStore, backend: StateBackend, tags: Any) -> None:
    with pytest.raises(RefusedError):
        await store.put("k", {}, tags=tags)
    with pytest.raises(RefusedError):
        await store.page(tags=tags)
    with pytest.raises(RefusedError):
        await StateStore("s", tags=tags, backend=backend).info()


@pytest.mark.parametrize(
    "settings", [{"ttl_seconds": 0}, {"ttl_seconds": -2}, {"ttl_seconds": 2**31}, {"description": "x" * 1025}]
)
async def test_settings_have_limits(backend: StateBackend, settings: Any) -> None:
    with pytest.raises(RefusedError):
        await StateStore("s", **settings, backend=backend).info()


@pytest.mark.parametrize("limit", [0, -1, 101])
async def test_a_page_has_one_to_a_hundred_keys(store: StateStore, limit: int) -> None:
    with pytest.raises(RefusedError):
        await store.page(limit=limit)
