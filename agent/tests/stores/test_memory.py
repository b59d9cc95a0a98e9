"""The bounds of the store in memory."""

import sys
import time
from typing import Any

import pytest
from cupola_agent.call import Caller
from cupola_agent.stores.base import NotFoundError, RefusedError
from cupola_agent.stores.memory import MemoryResponseStore

NOBODY = Caller()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def response(response_id: str, size: int = 0, **fields: Any) -> dict[str, Any]:
    item = {"id": f"item-of-{response_id}", "type": "message", "text": "x" * size}
    return {"id": response_id, "status": "completed", "output": [item], **fields}


async def kept(store: MemoryResponseStore, count: int) -> list[str]:
    """Which of r0, r1, ... can still be read, by response and by item alike."""
    found = []
    for number in range(count):
        try:
            found.append((await store.get(f"r{number}", NOBODY))["id"])
        except NotFoundError:
            continue
    items = await store.items([f"item-of-r{number}" for number in range(count)], NOBODY)
    assert [item["id"].removeprefix("item-of-") for item in items if item] == found
    return found


async def test_the_least_recently_written_go_when_there_are_too_many() -> None:
    store = MemoryResponseStore(max_responses=3)
    for number in range(3):
        await store.create(response(f"r{number}", conversation="c"), [], [], NOBODY)
    await store.update(response("r0", conversation="c"), NOBODY)
    await store.create(response("r3", conversation="c"), [], [], NOBODY)
    assert await kept(store, 4) == ["r0", "r2", "r3"]
    history = await store.history_item_ids(NOBODY, previous_response_id=None, conversation_id="c")
    assert history == ["item-of-r0", "item-of-r2", "item-of-r3"]


async def test_the_least_recently_written_go_when_they_are_too_large_together() -> None:
    store = MemoryResponseStore(max_bytes=100_000)
    for number in range(3):
        await store.create(response(f"r{number}", size=40_000), [], [], NOBODY)
    assert await kept(store, 3) == ["r1", "r2"]
    await store.update(response("r1", size=90_000), NOBODY)
    assert await kept(store, 3) == ["r1"]


async def test_one_that_is_too_large_alone_is_refused_and_pushes_nothing_out() -> None:
    store = MemoryResponseStore(max_bytes=100_000)
    await store.create(response("r0"), [], [], NOBODY)
    with pytest.raises(RefusedError):
        await store.create(response("r1", size=200_000), [], [], NOBODY)
    with pytest.raises(RefusedError):
        await store.update(response("r0", size=200_000), NOBODY)
    assert await store.get("r0", NOBODY) == response("r0")


async def test_a_response_is_forgotten_some_time_after_it_was_written_last() -> None:
    clock = Clock()
    store = MemoryResponseStore(retention_seconds=10, clock=clock)
    await store.create(response("r0"), [], [], NOBODY)
    await store.create(response("r1"), [], [], NOBODY)
    clock.now = 9
    await store.update(response("r0"), NOBODY)
    clock.now = 18
    assert await kept(store, 2) == ["r0"]
    clock.now = 20
    assert await kept(store, 2) == []
    await store.create(response("r0"), [], [], NOBODY)


async def test_what_is_kept_stays_within_the_bytes_allowed() -> None:
    """The estimate of what an entry costs holds against what Python allocates."""
    import gc
    import tracemalloc

    allowed = 8 * 1024 * 1024
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        store = MemoryResponseStore(max_bytes=allowed, max_responses=sys.maxsize)
        for number in range(8000):
            inputs = [{"id": f"in-{number}-{place}", "text": "x" * 100} for place in range(3)]
            await store.create(response(f"r{number}", size=200), inputs, [], NOBODY)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1.25 * allowed


async def test_a_call_takes_no_longer_when_thousands_are_kept() -> None:
    """Compared in one run: the same calls on a store with 20,000 responses and on one with 20."""

    async def calls(store: MemoryResponseStore) -> float:
        best = float("inf")
        for attempt in range(5):
            started = time.perf_counter()
            for number in range(200):
                response_id = f"new-{attempt}-{number}"
                await store.create(response(response_id), [], [], NOBODY)
                await store.get(response_id, NOBODY)
                await store.items([f"item-of-{response_id}"], NOBODY)
                await store.delete(response_id, NOBODY)
            best = min(best, time.perf_counter() - started)
        return best

    small, large = MemoryResponseStore(max_responses=100_000), MemoryResponseStore(max_responses=100_000)
    for store, count in ((small, 20), (large, 20_000)):
        for number in range(count):
            await store.create(response(f"r{number}"), [], [], NOBODY)
    assert await calls(large) < 20 * await calls(small)
