from __future__ import annotations

import msgspec
import pytest

from cupola.sessions.priming.client import FRAME_LIMIT, FrameReader, Primed, PrimingFailed, Running
from cupola.sessions.priming.plan import PLAN_LIMIT, Imported, Plan, Recording, make_plan


def imported(name: str, number: int, *, reasons: tuple[str, ...] = (), needs: tuple[str, ...] = (),
             provides: tuple[str, ...] = ()) -> Imported:  # fmt: skip
    return Imported(name, number, f"/app/{name}.py", reasons, needs, provides)


def plan_of(*modules: Imported, without: tuple[str, ...] = ()) -> Plan:
    return make_plan(Recording(modules, ("SESSION",)), without)


def test_modules_are_imported_in_the_order_in_which_they_began() -> None:
    plan = plan_of(imported("inner", 2), imported("outer", 1, needs=("inner",)))
    assert plan.modules == (("outer", "/app/outer.py"), ("inner", "/app/inner.py"))
    assert plan.variables == ("SESSION",)


def test_a_reason_spreads_to_all_that_need_the_module() -> None:
    plan = plan_of(
        imported("a", 1, reasons=("reads the clock",)), imported("b", 2, needs=("a",)), imported("c", 3, needs=("b",)),
        imported("d", 4),
    )  # fmt: skip
    assert plan.modules == (("d", "/app/d.py"),)
    assert plan.skipped == {"a": "reads the clock", "b": "it needs a", "c": "it needs b"}


def test_modules_that_import_each_other_end_the_search() -> None:
    plan = plan_of(imported("a", 1, needs=("b",)), imported("b", 2, needs=("a",)), without=("b",))
    assert plan.modules == ()
    assert plan.skipped["b"] == "it could not be imported ahead when it was tried"


def test_what_needs_a_module_that_was_not_recorded_is_left_out_unless_another_provides_it() -> None:
    plan = plan_of(imported("a", 1, needs=("x",)), imported("b", 2, provides=("y",)), imported("c", 3, needs=("y",)))
    assert [name for name, _ in plan.modules] == ["b", "c"]


def test_names_that_are_no_identifiers_are_not_imported_by_us() -> None:
    assert plan_of(imported("a-b", 1), imported("c", 2, needs=("a-b",))).modules == (("c", "/app/c.py"),)


@pytest.mark.parametrize("patcher", ["gevent.monkey", "eventlet.patcher"])
def test_nothing_is_imported_before_a_patcher(patcher: str) -> None:
    assert plan_of(imported(patcher, 1), imported("a", 2)).modules == ()


def test_a_plan_is_kept_as_it_is() -> None:
    plan = plan_of(imported("a", 1, reasons=("x",)), imported("b", 2))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        msgspec.json.encode(Plan((("os; import evil", None),), {}, ())),
        b" " * (PLAN_LIMIT + 1),
    ],
)
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - of several modules
        Plan.from_json(data)


# What comes from a sandbox


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


RUNNING = frame(b'{"type":"running","cold":null}')
PRIMED = frame(b'{"type":"primed","milliseconds":7,"count":2,"skipped":{"a":"b"}}')


def test_messages_are_put_together_from_any_pieces() -> None:
    reader = FrameReader()
    data = RUNNING + PRIMED
    messages = [message for at in range(len(data)) for message in reader.feed(data[at : at + 1])]
    assert messages == [Running(None), Primed(7, 2, {"a": "b"})]
    assert reader.feed(data + data[:9]) == messages


@pytest.mark.parametrize(
    "data",
    [
        (FRAME_LIMIT + 1).to_bytes(4, "big"),
        frame(b""),
        frame(b"null"),
        frame(b'{"type":"other"}'),
        frame(b'{"type":"running","cold":7}'),
        frame(b'{"type":"running","cold":"' + b"x" * 1025 + b'"}'),
        frame(b"[" * 100_000),
        frame(b'{"type":"primed","milliseconds":7,"count":2,"skipped":{"a":"\xff"}}'),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(PrimingFailed):
        FrameReader().feed(data)
