from __future__ import annotations

import asyncio

import pytest

from cupola.sandbox.oci.network.pool import SIZE, Pool


class Things:
    """Numbers as what is made; making them can be held up or fail."""

    def __init__(self) -> None:
        self.made = 0
        self.discarded: list[int] = []
        self.failing = False
        self.going = asyncio.Event()
        self.going.set()
        self.pool: Pool[int] = Pool(self.make, self.discard)

    async def make(self) -> int:
        await self.going.wait()
        if self.failing:
            raise OSError("no more of them")
        self.made += 1
        return self.made

    async def discard(self, thing: int) -> None:
        self.discarded.append(thing)

    async def until_made(self, count: int) -> None:
        async with asyncio.timeout(5):
            while self.made < count:
                await asyncio.sleep(0)


async def test_some_are_made_ahead_once_one_was_wanted() -> None:
    things = Things()
    await asyncio.sleep(0)
    assert things.made == 0
    assert await things.pool.take() == 1
    await things.until_made(1 + SIZE)
    things.going.clear()
    # These wait for nothing any more.
    assert [await things.pool.take() for _ in range(SIZE)] == [2, 3, 4, 5]
    things.going.set()
    await things.pool.close()


async def test_what_nobody_took_is_discarded_and_each_is_given_out_once() -> None:
    things = Things()
    taken = await asyncio.gather(*(things.pool.take() for _ in range(20)))
    await things.pool.close()
    assert len(set(taken)) == 20
    assert sorted([*taken, *things.discarded]) == list(range(1, things.made + 1))


async def test_one_that_is_just_being_made_is_discarded_too() -> None:
    things = Things()
    await things.pool.take()
    things.going.clear()
    await things.until_made(1)
    closing = asyncio.create_task(things.pool.close())
    await asyncio.sleep(0)
    things.going.set()
    await asyncio.wait_for(closing, 5)
    assert sorted(things.discarded) == list(range(2, things.made + 1))


async def test_a_failure_is_that_of_whoever_needs_one(caplog: pytest.LogCaptureFixture) -> None:
    things = Things()
    await things.pool.take()
    await things.until_made(1 + SIZE)
    things.failing = True
    for _ in range(SIZE):
        await things.pool.take()
    with pytest.raises(OSError, match="no more of them"):
        await things.pool.take()
    async with asyncio.timeout(5):
        while "networks could not be prepared ahead: no more of them" not in caplog.text:
            await asyncio.sleep(0)
    things.failing = False
    await things.pool.take()
    await things.pool.close()
