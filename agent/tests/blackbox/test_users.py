"""What one user may do with another's responses: nothing, not even learn of them (contract section 4.10)."""

from __future__ import annotations

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.expectations import (
    DELETE,
    GET,
    OPERATIONS,
    REPLAY,
    Operation,
    State,
    check,
    expected,
    state_ended,
    state_in_flight,
)
from agent.tests.blackbox.turns import (
    BACKGROUND,
    BACKGROUND_STREAM,
    COMPLETED,
    MODES,
    MOMENTS,
    SYNC,
    Mode,
    asked,
    ended,
    in_flight,
)
from agent.tests.blackbox.wire import Client

STORED = [mode for mode in MODES if mode.store]
OWNER = {"x-agent-user-id": "user-a"}
STRANGERS = {"another user": {"x-agent-user-id": "user-b"}, "no user": {}, "empty user": {"x-agent-user-id": ""}}


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("mode", STORED, ids=str)
def test_a_stranger_does_not_find_a_response_that_has_ended(
    client: Client, mode: Mode, stranger: str, operation: Operation
) -> None:
    turn = ended(client.with_headers(OWNER), mode, COMPLETED)
    answer = operation.run(client.with_headers(STRANGERS[stranger]), turn.id)
    check(answer, operation, turn.id, expected(operation, State.GONE))
    # It is still there for its owner.
    assert client.with_headers(OWNER).get(turn.path).status == 200


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_a_stranger_does_not_find_a_response_in_flight(
    client: Client, control: Control, mode: Mode, stranger: str, operation: Operation
) -> None:
    with in_flight(client.with_headers(OWNER), control, mode, MOMENTS[1]) as turn:
        answer = operation.run(client.with_headers(STRANGERS[stranger]), turn.id)
        check(answer, operation, turn.id, expected(operation, State.GONE))
        assert turn.gate is not None
        turn.gate.open()
        assert turn.final()["status"] == "completed"


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
@pytest.mark.parametrize("mode", STORED, ids=str)
def test_the_owner_has_every_operation(client: Client, mode: Mode, operation: Operation) -> None:
    turn = ended(client.with_headers(OWNER), mode, COMPLETED)
    answer = operation.run(client.with_headers(OWNER), turn.id)
    check(answer, operation, turn.id, expected(operation, state_ended(mode), "completed"), "completed")


@pytest.mark.parametrize("operation", [GET, DELETE], ids=str)
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_the_owner_has_every_operation_in_flight(
    client: Client, control: Control, mode: Mode, operation: Operation
) -> None:
    owner = client.with_headers(OWNER)
    with in_flight(owner, control, mode, MOMENTS[1]) as turn:
        check(operation.run(owner, turn.id), operation, turn.id, expected(operation, state_in_flight(mode)))


@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if operation is not REPLAY], ids=str)
@pytest.mark.parametrize("mode", STORED, ids=str)
def test_a_response_made_without_a_user_is_open_to_everyone(client: Client, mode: Mode, operation: Operation) -> None:
    turn = ended(client, mode, COMPLETED)
    answer = operation.run(client.with_headers(OWNER), turn.id)
    check(answer, operation, turn.id, expected(operation, state_ended(mode), "completed"), "completed")


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_stranger_cannot_go_on_from_a_response(client: Client, mode: Mode, stranger: str) -> None:
    first = ended(client.with_headers(OWNER), SYNC, COMPLETED)
    body = {"input": "history", "previous_response_id": first.id, **mode.fields}
    answer = client.post("/responses", body, STRANGERS[stranger])
    assert answer.status == 404
    assert answer.error["type"] == "invalid_request_error"


def test_the_handler_is_told_who_calls(client: Client) -> None:
    with asked(client, SYNC, "tell user", OWNER) as turn:
        assert turn.final()["output"][0]["content"][0]["text"] == "user-a"
    with asked(client, SYNC, "tell user") as turn:
        assert turn.final()["output"][0]["content"][0]["text"] == "nobody"
