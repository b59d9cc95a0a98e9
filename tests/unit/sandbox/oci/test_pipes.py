"""Output is taken at the pace the platform can bear."""

from __future__ import annotations

import asyncio
import os
import threading

from cupola.sandbox.oci.pipes import CAPACITY, OutputBudget, OutputPipe, open_pipe


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_ordinary_output_is_never_held_up() -> None:
    clock = Clock()
    budget = OutputBudget(clock)
    for _ in range(100):
        assert budget.spend(0.0001) == 0
        clock.now += 0.01


def test_a_flood_gets_its_share_of_the_time_and_no_more() -> None:
    clock = Clock()
    budget = OutputBudget(clock)
    worked, began = 0.0, clock.now
    while clock.now < began + 100:
        worked += 0.002
        clock.now += 0.002 + budget.spend(0.002)
    assert worked / (clock.now - began) <= OutputBudget.SHARE * 1.1


def test_several_floods_share_one_budget() -> None:
    clock = Clock()
    budget = OutputBudget(clock)
    waiting = [clock.now] * 10
    worked, began = 0.0, clock.now
    while clock.now < began + 100:
        first = waiting.index(min(waiting))
        clock.now = max(clock.now, waiting[first]) + 0.001
        worked += 0.001
        waiting[first] = clock.now + budget.spend(0.001)
    assert worked / (clock.now - began) <= OutputBudget.SHARE * 1.1


async def test_all_that_is_printed_arrives_in_order_however_long_it_takes() -> None:
    taken = bytearray()
    read_end, write_end = open_pipe()
    pipe = OutputPipe("stdout", read_end, lambda _, data: taken.extend(data), OutputBudget())
    printed = b"".join(b"%07d\n" % number for number in range(40_000))

    def write() -> None:
        left = memoryview(printed)
        while left:
            left = left[os.write(write_end, left) :]
        os.close(write_end)

    writer = threading.Thread(target=write)
    writer.start()
    async with asyncio.timeout(20):
        while len(taken) < len(printed):
            await asyncio.sleep(0.001)
    writer.join()
    pipe.finish()
    assert taken == printed


async def test_what_is_left_in_the_pipe_is_taken_at_the_end() -> None:
    taken = bytearray()
    read_end, write_end = open_pipe()
    pipe = OutputPipe("stderr", read_end, lambda _, data: taken.extend(data), OutputBudget())
    os.write(write_end, b"x" * CAPACITY)
    pipe.finish()
    assert len(taken) == CAPACITY
    os.close(write_end)
    pipe.finish()


async def test_who_never_closes_its_output_cannot_hold_up_the_end() -> None:
    taken = bytearray()
    read_end, write_end = open_pipe()
    pipe = OutputPipe("stdout", read_end, lambda _, data: taken.extend(data), OutputBudget())
    pipe.finish()
    assert taken == b""
    os.close(write_end)
