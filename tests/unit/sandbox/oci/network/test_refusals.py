from __future__ import annotations

from cupola.sandbox.oci.network.refusals import BURST, MOST_REMEMBERED, REPEAT_AFTER, SECONDS_PER_LINE, Refusals


class Told:
    """What was reported, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        self.refusals = Refusals(self.lines.append, lambda: self.now)


def test_the_same_subject_is_told_once_a_minute() -> None:
    told = Told()
    for second in range(int(2 * REPEAT_AFTER)):
        told.now = float(second)
        told.refusals.note("a", "a is refused.")
    assert told.lines == ["a is refused."] * 2


def test_many_subjects_stay_few_lines_and_say_how_many_there_were() -> None:
    told = Told()
    for number in range(1000):
        told.refusals.note(str(number), f"{number} is refused.")
    assert told.lines == [f"{number} is refused." for number in range(BURST)]
    told.now = SECONDS_PER_LINE
    told.refusals.note("another", "another is refused.")
    assert told.lines[BURST:] == [f"another is refused. Before that, {1000 - BURST} refusals were not told."]
    told.now = 2 * SECONDS_PER_LINE
    told.refusals.note("last", "last is refused.")
    assert told.lines[BURST + 1 :] == ["last is refused."]


def test_one_that_was_not_told_is_told_when_there_is_room() -> None:
    told = Told()
    for number in range(BURST):
        told.refusals.note(str(number), "refused")
    told.refusals.note("late", "late is refused.")
    told.now = SECONDS_PER_LINE
    told.refusals.note("late", "late is refused.")
    assert told.lines[-1] == "late is refused. Before that, 1 refusal was not told."


def test_what_is_remembered_is_bounded() -> None:
    told = Told()
    for number in range(3 * MOST_REMEMBERED):
        told.now = number * SECONDS_PER_LINE
        told.refusals.note(str(number), "refused")
    assert len(told.lines) == 3 * MOST_REMEMBERED
    assert len(told.refusals._told) <= MOST_REMEMBERED
