"""Holding a lease: renewed while it is held, given up the moment another may be at work."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cupola_agent.platform.api import Platform
from cupola_agent.stores.base import UnavailableError
from cupola_agent.tasks.base import LeaseRequest, Task
from cupola_agent.tasks.lease import HeldLease, LeaseLost
from cupola_agent.tasks.local import LocalTaskStore
from cupola_agent.tasks.platform import PlatformTaskStore

from agent.tests.fake_platform import Answer, FakePlatform, Fault, running_platform

MINE = LeaseRequest("owner", "worker-1", 60)
RESTARTED = LeaseRequest("owner", "worker-2", 60)
FOREIGN = LeaseRequest("other", "worker-1", 60)


class Time:
    """A clock that the test moves; who sleeps wakes when it has come so far."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def monotonic(self) -> float:
        return self.seconds

    def utc(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    async def sleep(self, seconds: float) -> None:
        awake = asyncio.Event()
        self._sleepers.append((self.seconds + seconds, awake))
        await awake.wait()

    async def pass_by(self, seconds: float) -> None:
        """Moves on, and returns when whoever woke has gone to sleep again or is done."""
        await self.somebody_sleeps()
        self.seconds += seconds
        due = [sleeper for sleeper in self._sleepers if sleeper[0] <= self.seconds]
        self._sleepers = [sleeper for sleeper in self._sleepers if sleeper not in due]
        for _, awake in due:
            awake.set()

    async def somebody_sleeps(self) -> None:
        async with asyncio.timeout(30):
            while not self._sleepers:
                await asyncio.sleep(0.001)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def fake(tmp_path: Path, time: Time) -> AsyncGenerator[FakePlatform, None]:
    async with running_platform(tmp_path) as running:
        await running.tasks.close()
        running.tasks = LocalTaskStore(tmp_path, clock=time.utc)
        yield running


@pytest.fixture
async def store(fake: FakePlatform) -> AsyncGenerator[PlatformTaskStore, None]:
    async def at_once(seconds: float) -> None:
        return

    store = PlatformTaskStore(Platform.from_environment(fake.variables, sleep=at_once))
    yield store
    await store.close()


async def begun(store: PlatformTaskStore) -> Task:
    return await store.create({"id": "t1", "agent_name": "agent", "session_id": "s", "status": "in_progress"}, MINE)


def held(store: PlatformTaskStore, task: Task, time: Time) -> HeldLease:
    return HeldLease(store, task, MINE, sleep=time.sleep, clock=time.monotonic)


async def lost(lease: HeldLease) -> str:
    async with asyncio.timeout(30):
        return await lease.wait_lost()


async def test_a_lease_is_renewed_as_long_as_it_is_held(store: PlatformTaskStore, time: Time) -> None:
    async with held(store, await begun(store), time) as lease:
        for _ in range(5):
            await time.pass_by(30)
            await time.somebody_sleeps()
        assert not lease.is_lost
        kept = await store.get("t1")
        assert kept.lease is not None
        assert (kept.lease.generation, kept.lease.heartbeat_at) == (0, time.utc().isoformat())
        assert lease.task == kept


async def test_after_leaving_nothing_is_renewed_any_more(
    fake: FakePlatform, store: PlatformTaskStore, time: Time
) -> None:
    async with held(store, await begun(store), time):
        await time.somebody_sleeps()
    before = len(fake.received)
    await time.pass_by(300)
    assert len(fake.received) == before
    assert not [task for task in asyncio.all_tasks() if "_keep" in repr(task)]


@pytest.mark.parametrize("other", [RESTARTED, FOREIGN])
async def test_a_lease_that_another_took_is_lost_and_not_taken_back(
    store: PlatformTaskStore, time: Time, other: LeaseRequest
) -> None:
    async with held(store, await begun(store), time) as lease:
        if other is FOREIGN:
            time.seconds += 61
        taken = await store.update("t1", {}, other)
        await time.pass_by(30)
        assert "another" in await lost(lease)
        with pytest.raises(LeaseLost):
            await lease.update({"payload": {"late": True}})
    assert await store.get("t1") == taken


@pytest.mark.parametrize("other", [RESTARTED, FOREIGN])
async def test_a_write_of_the_former_holder_is_lost_too(
    store: PlatformTaskStore, time: Time, other: LeaseRequest
) -> None:
    async with held(store, await begun(store), time) as lease:
        if other is FOREIGN:
            time.seconds += 61
        taken = await store.update("t1", {}, other)
        with pytest.raises(LeaseLost):
            await lease.update({"payload": {"late": True}})
        assert lease.is_lost
    assert await store.get("t1") == taken


async def test_the_holder_writes_on_top_of_its_own_renewals(store: PlatformTaskStore, time: Time) -> None:
    async with held(store, await begun(store), time) as lease:
        await time.pass_by(30)
        await lease.update({"payload": {"step": 1}})
        await time.pass_by(30)
        await asyncio.gather(*(lease.update({"payload": {f"part{n}": n}}) for n in range(5)))
        done = await lease.update({"status": "completed"})
    assert done.payload == {"step": 1, **{f"part{n}": n for n in range(5)}}
    assert await store.get("t1") == done


async def test_a_write_of_somebody_else_does_not_cost_the_lease(store: PlatformTaskStore, time: Time) -> None:
    async with held(store, await begun(store), time) as lease:
        await store.update("t1", {"payload": {"steering": {"cancel_requested": True}}})
        task = await lease.update({"payload": {"mine": 1}})
        assert task.payload == {"steering": {"cancel_requested": True}, "mine": 1}
        assert not lease.is_lost


async def test_an_answer_that_was_lost_does_not_cost_the_lease(
    fake: FakePlatform, store: PlatformTaskStore, time: Time
) -> None:
    async with held(store, await begun(store), time) as lease:
        fake.faults.append(Fault("/tasks", Answer(503), method="PATCH", done=True))
        assert (await lease.update({"payload": {"n": 1}})).payload == {"n": 1}
        assert not lease.is_lost


async def test_a_task_that_is_gone_or_done_needs_no_lease(store: PlatformTaskStore, time: Time) -> None:
    async with held(store, await begun(store), time) as lease:
        await store.delete("t1", force=True)
        await time.pass_by(30)
        assert "gone" in await lost(lease)
    async with held(store, await begun(store), time) as lease:
        await store.update("t1", {"status": "completed"})
        with pytest.raises(LeaseLost):
            await lease.update({"payload": {"late": True}})


async def test_a_short_absence_of_the_platform_does_not_cost_the_lease(
    fake: FakePlatform, store: PlatformTaskStore, time: Time
) -> None:
    async with held(store, await begun(store), time) as lease:
        fake.faults.append(Fault("/tasks", Answer(503), times=8))
        await time.pass_by(30)
        await time.pass_by(2)
        await time.pass_by(2)
        await time.somebody_sleeps()
        assert not lease.is_lost
        assert lease.task.lease is not None
        assert lease.task.lease.heartbeat_at == time.utc().isoformat()


async def test_a_lease_that_could_not_be_renewed_in_time_is_lost(
    fake: FakePlatform, store: PlatformTaskStore, time: Time
) -> None:
    async with held(store, await begun(store), time) as lease:
        fake.faults.append(Fault("/tasks", Answer(503), times=10_000))
        await time.pass_by(30)
        with pytest.raises(UnavailableError):
            await lease.update({"payload": {}})
        assert not lease.is_lost
        await time.pass_by(31)
        assert "expired" in await lost(lease)


async def test_a_lease_that_expired_while_the_sandbox_was_frozen_is_kept_if_nobody_took_it(
    store: PlatformTaskStore, time: Time
) -> None:
    async with held(store, await begun(store), time) as lease:
        await time.pass_by(3600)
        await time.somebody_sleeps()
        assert not lease.is_lost
        assert (await lease.update({"payload": {"n": 1}})).payload == {"n": 1}


async def test_a_lease_of_another_cannot_be_held(store: PlatformTaskStore, time: Time) -> None:
    task = await begun(store)
    with pytest.raises(ValueError, match="lease"):
        HeldLease(store, task, RESTARTED)
