from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cupola.sessions.admission import Admission, Limits, Place
from tests.unit.sessions.world import refused


def limits(sandboxes: int = 0, memory: int = 0, queue: int = 100, deadline: float = 20.0) -> Admission:
    return Admission(Limits(sandboxes, memory, queue, deadline))


class Callers:
    """Requests that wait, and the order in which they got their places."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[Place]] = []

    async def ask(self, caller: str, memory: int = 1) -> asyncio.Task[Place]:
        async def take() -> Place:
            place = await self.admission.take(memory, caller)
            self.order.append(caller)
            return place

        task = asyncio.create_task(take())
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    made = Callers(limits(sandboxes=1))
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_without_limits_there_is_always_a_place() -> None:
    admission = limits()
    places = [await admission.take(1 << 40, "ada") for _ in range(1000)]
    assert (admission.count, admission.memory) == (1000, 1000 << 40)
    for place in places:
        place.give_back()
        place.give_back()
    assert (admission.count, admission.memory) == (0, 0)


async def test_callers_take_turns(callers: Callers) -> None:
    first = await callers.admission.take(1, "ada")
    for caller in ("ada", "ada", "ada", "bob", "eve", "bob"):
        await callers.ask(caller)
    place = first
    for _ in range(6):
        place.give_back()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        place = next(task.result() for task in reversed(callers.tasks) if task.done() and not task.result()._returned)
    assert callers.order == ["ada", "bob", "eve", "ada", "bob", "ada"]


async def test_a_large_one_is_not_passed_by_small_ones() -> None:
    admission = limits(memory=10)
    callers = Callers(admission)
    first, second = await admission.take(5, "ada"), await admission.take(5, "ada")
    large = await callers.ask("ada", 8)
    small = await callers.ask("bob", 1)
    assert admission.try_take(1) is None
    first.give_back()
    await asyncio.sleep(0)
    assert not small.done()
    second.give_back()
    await asyncio.gather(large, small)
    assert callers.order == ["ada", "bob"]


async def test_what_can_never_fit_is_refused_at_once() -> None:
    async with refused("sandbox_too_large", 400):
        await limits(memory=10).take(11, "ada")


async def test_too_many_waiting_are_refused_and_told_when_to_come_back() -> None:
    admission = limits(sandboxes=1, queue=1)
    place = await admission.take(1, "ada")
    callers = Callers(admission)
    waiting = await callers.ask("ada")
    async with refused("too_many_sandboxes", 429) as errors:
        await admission.take(1, "bob")
    assert errors[0].retry_after is not None
    patient = asyncio.create_task(admission.take(1, "bob", patient=True))
    place.give_back()
    (await waiting).give_back()
    (await patient).give_back()
    assert (admission.count, admission.waiting) == (0, 0)


async def test_the_wait_has_a_deadline_that_the_next_in_line_profits_from() -> None:
    admission = limits(memory=10, deadline=0.01)
    place = await admission.take(9, "ada")
    async with refused("too_many_sandboxes", 429):
        await admission.take(5, "ada")
    small = await admission.take(1, "bob")
    place.give_back()
    small.give_back()
    assert (admission.count, admission.waiting) == (0, 0)


async def test_who_leaves_gives_its_place_to_the_next(callers: Callers) -> None:
    place = await callers.admission.take(1, "ada")
    leaving, staying = await callers.ask("ada"), await callers.ask("ada")
    place.give_back()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    (await staying).give_back()
    assert callers.admission.count == 0


async def test_room_is_asked_for_by_each_who_waits() -> None:
    admission = limits(sandboxes=2)
    held = [await admission.take(1, "ada") for _ in range(2)]
    asked = 0

    def make_room() -> None:
        nonlocal asked
        asked += 1
        if held:
            held.pop().give_back()

    admission.make_room = make_room
    callers = Callers(admission)
    tasks = [await callers.ask("bob") for _ in range(2)]
    await asyncio.gather(*tasks)
    assert asked == 2
