"""Every operation, in every mode, at every moment: get, replay, cancel, delete, input items, and what comes after."""

from __future__ import annotations

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.expectations import (
    CANCEL,
    DELETE,
    OPERATIONS,
    REPLAY,
    Operation,
    State,
    check,
    expected,
    state_after,
    state_ended,
    state_in_flight,
)
from agent.tests.blackbox.turns import (
    BACKGROUND,
    BACKGROUND_STREAM,
    COMPLETED,
    ENDINGS,
    MODES,
    MOMENTS,
    Ending,
    Mode,
    Moment,
    Turn,
    ended,
    in_flight,
)
from agent.tests.blackbox.wire import TERMINAL, Client, new_id

PAIRS = [(first, second) for first in (CANCEL, DELETE) for second in OPERATIONS]


def ids(case: object) -> str:
    return str(case)


def run(turn: Turn, operation: Operation, state: State, status: str = "") -> State:
    """Runs and checks one operation; gives the state the response is in afterwards."""
    wanted = expected(operation, state, status)
    if operation is REPLAY and state is State.STREAMED_RUNNING:
        with turn.client.send("GET", operation.path.format(id=turn.id)) as replay:
            assert replay.response.status == 200
            assert turn.gate is not None
            turn.gate.open()
            check(replay.answer(), operation, turn.id, wanted, status)
        return State.STREAMED_ENDED
    check(operation.run(turn.client, turn.id), operation, turn.id, wanted, status)
    return state_after(operation, state)


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
@pytest.mark.parametrize("moment", MOMENTS, ids=ids)
@pytest.mark.parametrize("mode", MODES, ids=ids)
def test_an_operation_in_flight(
    client: Client, control: Control, mode: Mode, moment: Moment, operation: Operation
) -> None:
    with in_flight(client, control, mode, moment) as turn:
        assert turn.gate is not None
        state = run(turn, operation, state_in_flight(mode))
        cancelled = state in (State.BACKGROUND_CANCELLED, State.STREAMED_CANCELLED)
        if cancelled:
            turn.gate.wait_until_left()
        turn.gate.open()
        # Whatever was answered, the turn goes on as if nobody had asked, unless it was cancelled.
        final = turn.final()
        assert final["status"] == ("cancelled" if cancelled else "completed")
        if cancelled:
            assert final["output"] == []
        else:
            assert [item["type"] for item in final["output"]][: moment.items_before] == [
                "function_call"
            ] * moment.items_before
            assert final["output"][-1]["content"][0]["text"].endswith("b")


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=ids)
@pytest.mark.parametrize("moment", MOMENTS, ids=ids)
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=ids)
def test_two_operations_in_flight(
    client: Client, control: Control, mode: Mode, moment: Moment, first: Operation, second: Operation
) -> None:
    with in_flight(client, control, mode, moment) as turn:
        run(turn, second, run(turn, first, state_in_flight(mode)))


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
@pytest.mark.parametrize("ending", ENDINGS, ids=ids)
@pytest.mark.parametrize("mode", MODES, ids=ids)
def test_an_operation_after_the_end(client: Client, mode: Mode, ending: Ending, operation: Operation) -> None:
    turn = ended(client, mode, ending)
    run(turn, operation, state_ended(mode), ending.status)


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=ids)
@pytest.mark.parametrize("ending", ENDINGS, ids=ids)
@pytest.mark.parametrize("mode", MODES, ids=ids)
def test_two_operations_after_the_end(
    client: Client, mode: Mode, ending: Ending, first: Operation, second: Operation
) -> None:
    turn = ended(client, mode, ending)
    run(turn, second, run(turn, first, state_ended(mode), ending.status), ending.status)


@pytest.mark.parametrize("moment", MOMENTS, ids=ids)
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=ids)
def test_many_cancels_at_once(client: Client, control: Control, mode: Mode, moment: Moment) -> None:
    with in_flight(client, control, mode, moment) as turn:
        cancels = [client.send("POST", f"{turn.path}/cancel") for _ in range(8)]
        for cancel in cancels:
            with cancel:
                answer = cancel.answer()
            assert (answer.status, answer.json["status"], answer.json["output"]) == (200, "cancelled", [])


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.store], ids=ids)
def test_many_deletes_at_once(client: Client, mode: Mode) -> None:
    turn = ended(client, mode, COMPLETED)
    deletes = [client.send("DELETE", turn.path) for _ in range(8)]
    statuses = []
    for delete in deletes:
        with delete:
            statuses.append(delete.answer().status)
    assert sorted(statuses) == [200] + [404] * 7


@pytest.mark.parametrize("number", range(10))
def test_a_cancel_that_races_with_the_end(client: Client, control: Control, number: int) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, MOMENTS[1]) as turn:
        assert turn.gate is not None
        with client.send("POST", f"{turn.path}/cancel") as cancel:
            turn.gate.open()
            answer = cancel.answer()
        # Either of the two came first, and all who look see the same.
        live, stored = turn.final(), client.get(turn.path).json
        assert live["status"] == stored["status"] == ("cancelled" if answer.status == 200 else "completed")
        assert live["output"] == stored["output"]
        assert len([event for event in turn.seen if event.kind in TERMINAL]) == 1


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
@pytest.mark.parametrize("partition_of_another", [False, True])
def test_an_operation_on_an_id_nobody_knows(client: Client, operation: Operation, partition_of_another: bool) -> None:
    response_id = new_id()
    if partition_of_another:
        known = ended(client, MODES[0], COMPLETED)
        response_id = f"{known.id[:-1]}{'a' if known.id[-1] != 'a' else 'b'}"
    check(operation.run(client, response_id), operation, response_id, expected(operation, State.GONE))


MALFORMED = ("x", "resp_123", "caresp_", "caresp_short", "CARESP_" + "0" * 50, "msg_" + "0" * 50, "caresp_" + "0" * 49,
             "caresp_" + "0" * 51, "caresp-" + "0" * 50, "caresp" + "0" * 50)  # fmt: skip


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
@pytest.mark.parametrize("response_id", MALFORMED)
def test_an_operation_on_a_malformed_id(client: Client, operation: Operation, response_id: str) -> None:
    answer = operation.run(client, response_id)
    assert answer.status == 400
    assert answer.error["code"] == "invalid_parameters"
    assert answer.error["message"] == "Malformed identifier."
    assert answer.error["param"] == f"responseId{{{response_id}}}"
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-platform-error-source"] == "user"


@pytest.mark.parametrize("operation", OPERATIONS, ids=ids)
def test_a_legacy_id_is_looked_up(client: Client, operation: Operation) -> None:
    response_id = "caresp_" + "a" * 48
    check(operation.run(client, response_id), operation, response_id, expected(operation, State.GONE))


METHODS = [
    ("PUT", "/responses", {"POST"}),
    ("DELETE", "/responses", {"POST"}),
    ("PATCH", "/responses/{id}", {"GET", "DELETE"}),
    ("POST", "/responses/{id}", {"GET", "DELETE"}),
    ("GET", "/responses/{id}/cancel", {"POST"}),
    ("DELETE", "/responses/{id}/cancel", {"POST"}),
    ("POST", "/responses/{id}/input_items", {"GET"}),
    ("POST", "/readiness", {"GET"}),
]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), METHODS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_method_a_path_does_not_have(client: Client, method: str, path: str, allowed: set[str]) -> None:
    answer = client.call(method, path.format(id=new_id()), {})
    assert answer.status == 405
    assert set(answer.headers["allow"].replace(" ", "").split(",")) >= allowed
    assert answer.headers["x-request-id"]
    assert "x-platform-error-source" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/liveness", "/response", "/responses/a/b/c", "/models", "/v1"])
def test_a_path_that_is_not_there(client: Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status, answer.body) == (404, b"Not Found")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-request-id"]
    assert answer.headers["x-platform-server"]
    assert "x-platform-error-source" not in answer.headers
