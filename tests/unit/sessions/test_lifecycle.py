from __future__ import annotations

import random

import pytest

from cupola.sessions.lifecycle import IllegalStep, Lifecycle, Status, Step, Target

FREEZE_AFTER, STOP_AFTER, HOLD_LIMIT = 1.0, 10.0, 100.0


def running() -> Lifecycle:
    life = Lifecycle(0.0)
    life.wait()
    finish(life, Step.START)
    life.give_up(0.0)
    return life


def finish(life: Lifecycle, step: Step, *, succeeded: bool = True) -> None:
    life.begin(step)
    life.finish(step, succeeded=succeeded)


def rest(life: Lifecycle, now: float) -> None:
    life.rest(now, FREEZE_AFTER, STOP_AFTER, HOLD_LIMIT)


def test_a_request_that_waits_starts_a_sandbox() -> None:
    life = Lifecycle(0.0)
    assert (life.next_step(), life.over) == (None, True)
    life.wait()
    assert (life.next_step(), life.over) == (Step.START, False)
    life.begin(Step.START)
    assert (life.status, life.next_step()) == (Status.STARTING, None)
    life.finish(Step.START, succeeded=True)
    assert (life.status, life.next_step()) == (Status.RUNNING, None)


def test_it_is_frozen_then_stopped() -> None:
    life = running()
    rest(life, 0.9)
    assert life.next_step() is None
    rest(life, 1.0)
    finish(life, Step.FREEZE)
    rest(life, 9.9)
    assert (life.status, life.next_step()) == (Status.FROZEN, None)
    rest(life, 10.0)
    finish(life, Step.STOP)
    assert life.over


def test_a_tier_of_zero_is_never_entered() -> None:
    life = running()
    life.rest(1e9, 0, 0, HOLD_LIMIT)
    assert life.next_step() is None


def test_a_held_sandbox_does_not_rest_until_the_limit() -> None:
    life = running()
    life.hold("old", 0.0)
    life.hold("young", 50.0)
    rest(life, 150.9)
    assert life.next_step() is None
    rest(life, 151.0)
    assert life.next_step() is Step.FREEZE
    life.hold("new", 151.0)
    assert life.next_step() is None


def test_a_request_in_the_middle_of_a_freeze_or_stop_is_served_after_it() -> None:
    life = running()
    rest(life, 5.0)
    life.begin(Step.FREEZE)
    life.wait()
    life.finish(Step.FREEZE, succeeded=True)
    assert life.next_step() is Step.THAW
    finish(life, Step.THAW)
    life.give_up(5.0)
    life.stop()
    life.begin(Step.STOP)
    life.wait()
    life.finish(Step.STOP, succeeded=True)
    assert life.next_step() is Step.START


def test_a_start_that_fails_is_tried_again_only_for_who_comes_after() -> None:
    life = Lifecycle(0.0)
    life.wait()
    life.begin(Step.START)
    life.give_up(0.0)
    life.finish(Step.START, succeeded=False)
    assert life.over
    life.wait()
    life.begin(Step.START)
    life.finish(Step.START, succeeded=False)
    assert life.next_step() is Step.START


def test_a_freeze_that_fails_leaves_it_running() -> None:
    life = running()
    rest(life, 5.0)
    finish(life, Step.FREEZE, succeeded=False)
    assert (life.status, life.target, life.next_step()) == (Status.RUNNING, Target.RUNNING, None)


def test_what_ended_by_itself_is_stopped_even_while_it_is_held() -> None:
    life = running()
    life.hold("request", 0.0)
    life.ended()
    finish(life, Step.STOP)
    assert not life.over
    life.release("request", 1.0)
    assert life.over


def test_what_is_not_possible_is_refused() -> None:
    life = Lifecycle(0.0)
    with pytest.raises(IllegalStep, match="only a running sandbox can be held, this one is stored"):
        life.hold("request", 0.0)
    with pytest.raises(IllegalStep, match="is stored and should be stored expects nothing, not freeze"):
        life.begin(Step.FREEZE)
    with pytest.raises(IllegalStep, match="is stored cannot have finished to stop"):
        life.finish(Step.STOP, succeeded=True)


class Simulation:
    """Random orders of everything that can happen to one session, with what must hold at every moment checked."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - repeatable on purpose
        self.now = 0.0
        self.life = Lifecycle(0.0)
        self.step: Step | None = None
        self.forced = False
        self.alive = False
        self.waiting: list[int] = []
        self.holding: list[int] = []
        self.asked = self.served = self.refused = 0

    def run(self, events: int) -> None:
        actions = [self.request, self.request, self.answer, self.answer, self.complete, self.complete, self.tick, self.tick,
                   self.leave, self.stop, self.die]  # fmt: skip
        for _ in range(events):
            self.random.choice(actions)()
            self.advance()
        # Everybody is answered in the end, and the sandbox is gone once it is idle for long.
        while self.waiting or self.holding or self.step is not None:
            self.complete(fail=False)
            self.answer()
            self.advance()
        self.now += STOP_AFTER
        rest(self.life, self.now)
        self.advance()
        while self.step is not None:
            self.complete(fail=False)
            self.advance()
        assert self.life.over
        assert not self.alive
        assert self.asked == self.served + self.refused

    def advance(self) -> None:
        """What a live session does after every event."""
        while self.step is None and (step := self.life.next_step()) is not None:
            if step in (Step.FREEZE, Step.STOP) and not self.forced:
                assert not self.holding, f"{step} while {len(self.holding)} requests are in flight"
                assert not self.waiting
            assert self.alive == (step is not Step.START)
            self.life.begin(step)
            self.step = step
            if step is Step.THAW:
                self.complete(fail=False)

    def request(self) -> None:
        self.asked += 1
        if self.life.status is Status.RUNNING:
            assert self.alive
            self.life.hold(self.asked, self.now)
            self.holding.append(self.asked)
        else:
            self.life.wait()
            self.waiting.append(self.asked)

    def answer(self) -> None:
        if self.holding:
            self.life.release(self.holding.pop(self.random.randrange(len(self.holding))), self.now)
            self.served += 1

    def leave(self) -> None:
        if self.waiting:
            self.waiting.pop(self.random.randrange(len(self.waiting)))
            self.life.give_up(self.now)
            self.refused += 1

    def tick(self) -> None:
        self.now += self.random.choice((0.0, 0.5, 1.0, 5.0, 10.0))
        rest(self.life, self.now)

    def stop(self) -> None:
        if self.random.random() < 0.2:
            self.forced = True
            self.life.stop()

    def die(self) -> None:
        if self.random.random() < 0.2 and self.life.status in (Status.RUNNING, Status.FREEZING, Status.FROZEN):
            self.forced = True
            self.life.ended()

    def complete(self, *, fail: bool | None = None) -> None:
        if self.step is None:
            return
        step, self.step = self.step, None
        may_fail = step in (Step.START, Step.FREEZE)
        failed = may_fail and (self.random.random() < 0.2 if fail is None else fail)
        if step is Step.START and failed:
            self.refused += len(self.waiting)
            for _ in self.waiting:
                self.life.give_up(self.now)
            self.waiting.clear()
        if step is Step.START:
            self.alive = not failed
        if step is Step.STOP:
            self.alive = False
            self.forced = False
        self.life.finish(step, succeeded=not failed)
        if self.life.status is Status.RUNNING and self.life.target is Target.RUNNING:
            for request in self.waiting:
                self.life.give_up(self.now)
                self.life.hold(request, self.now)
            self.holding += self.waiting
            self.waiting.clear()


def test_10000_orders_of_events_lose_no_request_and_stop_no_busy_sandbox() -> None:
    simulate(10_000)


def simulate(seeds: int) -> None:
    for seed in range(seeds):
        Simulation(seed).run(40)


def test_the_simulation_notices_a_sandbox_that_is_stopped_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Lifecycle, now: float, freeze_after: float, stop_after: float, hold_limit: float) -> None:
        self.target = Target.STORED

    monkeypatch.setattr(Lifecycle, "rest", careless)
    with pytest.raises(AssertionError, match="requests are in flight"):
        simulate(100)
