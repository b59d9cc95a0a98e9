"""What a session's sandbox is, what it should be, and the one step that leads there. No I/O and no clock of its own.

Requests wait until the sandbox runs and then hold it. Only what is neither waited for nor held is ever frozen or stopped,
except by an explicit stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Status(StrEnum):
    """How a session's sandbox is. `STORED` means that there is none, only files."""

    STORED = "stored"
    STARTING = "starting"
    RUNNING = "running"
    FREEZING = "freezing"
    FROZEN = "frozen"
    STOPPING = "stopping"


class Target(StrEnum):
    """How it should be."""

    STORED = "stored"
    RUNNING = "running"
    FROZEN = "frozen"


class Step(StrEnum):
    """What brings a status nearer to a target."""

    START = "start"
    FREEZE = "freeze"
    THAW = "thaw"
    STOP = "stop"


_STEPS: Mapping[tuple[Status, Target], Step] = {
    (Status.STORED, Target.RUNNING): Step.START,
    (Status.RUNNING, Target.FROZEN): Step.FREEZE,
    (Status.RUNNING, Target.STORED): Step.STOP,
    (Status.FROZEN, Target.RUNNING): Step.THAW,
    (Status.FROZEN, Target.STORED): Step.STOP,
}
_DURING: Mapping[Step, Status] = {
    Step.START: Status.STARTING,
    Step.FREEZE: Status.FREEZING,
    Step.THAW: Status.FROZEN,
    Step.STOP: Status.STOPPING,
}
_AFTER: Mapping[tuple[Step, bool], Status] = {
    (Step.START, True): Status.RUNNING,
    (Step.START, False): Status.STORED,
    (Step.FREEZE, True): Status.FROZEN,
    (Step.FREEZE, False): Status.RUNNING,
    (Step.THAW, True): Status.RUNNING,
    (Step.STOP, True): Status.STORED,
}


class IllegalStep(Exception):
    """A step was begun or finished that the status does not allow."""


class Lifecycle:
    """The state of one session's sandbox. Times are seconds of a monotonic clock, given by the caller."""

    def __init__(self, now: float) -> None:
        self.status = Status.STORED
        self.target = Target.STORED
        self.waiting = 0
        self.idle_since = now
        self._holds: dict[object, float] = {}

    @property
    def held(self) -> bool:
        """Whether some request uses the sandbox."""
        return bool(self._holds)

    @property
    def over(self) -> bool:
        """Whether nothing is left to do for the sandbox, nor anyone to do it for."""
        return self.status is Status.STORED and self.target is Target.STORED and not self.waiting and not self._holds

    def wait(self) -> None:
        """A request waits for a running sandbox."""
        self.waiting += 1
        self.target = Target.RUNNING

    def give_up(self, now: float) -> None:
        """A request waits no longer. What it has set off goes on: the next one will be glad of it."""
        self.waiting -= 1
        self.idle_since = now

    def hold(self, request: object, now: float) -> None:
        """A request uses the running sandbox."""
        if self.status is not Status.RUNNING:
            raise IllegalStep(f"only a running sandbox can be held, this one is {self.status}")
        self._holds[request] = now
        # Also when it was just about to be frozen or stopped: that has not begun yet.
        self.target = Target.RUNNING

    def release(self, request: object, now: float) -> None:
        """A request is done; nothing happens if it held nothing."""
        if self._holds.pop(request, None) is not None:
            self.idle_since = now

    def rest(self, now: float, freeze_after: float, stop_after: float, hold_limit: float) -> None:
        """Set the target by the time without requests; 0 for a tier means that it is never entered.

        A request that has held the sandbox for longer than `hold_limit` does not keep it awake any more.
        """
        if self.waiting or self.target is Target.STORED:
            return
        if self._holds:
            # They are in the order of their beginnings, so the last one is the youngest.
            youngest = next(reversed(self._holds.values()))
            idle = now - youngest - hold_limit
        else:
            idle = now - self.idle_since
        if stop_after and idle >= stop_after:
            self.target = Target.STORED
        elif freeze_after and idle >= freeze_after:
            self.target = Target.FROZEN

    def stop(self) -> None:
        """Let the sandbox be stopped, whoever holds it."""
        self.target = Target.STORED

    def ended(self) -> None:
        """The sandbox has ended by itself; what is left of it has to be stopped before another one is started."""
        if self.status in (Status.RUNNING, Status.FREEZING, Status.FROZEN):
            self.target = Target.STORED

    def next_step(self) -> Step | None:
        """What is to be done now; None while a step is under way or nothing has to be done."""
        return _STEPS.get((self.status, self.target))

    def begin(self, step: Step) -> None:
        """A step begins. Raises IllegalStep unless it is the next one."""
        if step is not self.next_step():
            expected = self.next_step() or "nothing"
            raise IllegalStep(
                f"a sandbox that is {self.status} and should be {self.target} expects {expected}, not {step}"
            )
        self.status = _DURING[step]

    def finish(self, step: Step, *, succeeded: bool) -> None:
        """A step has ended. Raises IllegalStep when it is not the one under way."""
        if self.status is not _DURING[step] or (step, succeeded) not in _AFTER:
            raise IllegalStep(f"a sandbox that is {self.status} cannot have finished to {step}, succeeded: {succeeded}")
        self.status = _AFTER[step, succeeded]
        if self.status is Status.STORED:
            # Whoever waited for a start that failed has been told by now; who waits still came after that.
            self.target = Target.RUNNING if self.waiting else Target.STORED
        if step is Step.FREEZE and not succeeded and self.target is Target.FROZEN:
            self.target = Target.RUNNING
