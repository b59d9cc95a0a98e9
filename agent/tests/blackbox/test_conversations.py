"""The next turn: by previous response and by conversation (contract sections 4.2 and 4.11)."""

from __future__ import annotations

from typing import Any

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.turns import (
    BACKGROUND,
    BACKGROUND_STREAM,
    COMPLETED,
    MODES,
    MOMENTS,
    STREAM,
    SYNC,
    Mode,
    Moment,
    asked,
    ended,
    in_flight,
)
from agent.tests.blackbox.wire import Answer, Client, new_id, partition_of

STORED = [mode for mode in MODES if mode.store]


def text_of(response: Any) -> str:
    return str(response["output"][0]["content"][0]["text"])


def go_on(client: Client, response_id: str, mode: Mode = SYNC) -> Answer:
    return client.post("/responses", {"input": "history", "previous_response_id": response_id, **mode.fields})


def check_not_found(answer: Answer) -> None:
    assert answer.status == 404, answer
    assert answer.error["type"] == "invalid_request_error"
    assert answer.headers["x-platform-error-source"] == "user"


@pytest.mark.parametrize("first_mode", STORED, ids=str)
@pytest.mark.parametrize("second_mode", MODES, ids=str)
def test_the_next_turn_knows_what_was_said(client: Client, first_mode: Mode, second_mode: Mode) -> None:
    first = ended(client, first_mode, COMPLETED)
    with asked(client, second_mode, "history", previous_response_id=first.id) as second:
        final = second.final()
    assert text_of(final) == f"user:{COMPLETED.script}|assistant:ab"
    assert final["previous_response_id"] == first.id


@pytest.mark.parametrize("mode", STORED, ids=str)
def test_the_fifth_turn_knows_all_before(client: Client, mode: Mode) -> None:
    previous: dict[str, Any] = {}
    said: list[str] = []
    for number in range(5):
        with asked(client, mode, f"say {number}", **previous) as turn:
            assert turn.final()["status"] == "completed"
        said += [f"user:say {number}", f"assistant:{number}"]
        previous = {"previous_response_id": turn.id}
    assert text_of(go_on(client, turn.id).json) == "|".join(said)


@pytest.mark.parametrize("mode", STORED, ids=str)
def test_two_turns_may_follow_the_same_one(client: Client, mode: Mode) -> None:
    first = ended(client, mode, COMPLETED)
    answers = [text_of(go_on(client, first.id).json) for _ in range(2)]
    assert answers == [f"user:{COMPLETED.script}|assistant:ab"] * 2


@pytest.mark.parametrize("mode", STORED, ids=str)
def test_the_first_turn_has_no_history(client: Client, mode: Mode) -> None:
    with asked(client, mode, "history; say nothing before") as turn:
        assert text_of(turn.final()) == "nothing before"


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_previous_response_nobody_knows(client: Client, mode: Mode) -> None:
    check_not_found(go_on(client, new_id(), mode))


@pytest.mark.parametrize("second_mode", MODES, ids=str)
@pytest.mark.parametrize("first_mode", [mode for mode in MODES if not mode.store], ids=str)
def test_a_response_that_was_not_stored_has_no_next_turn(client: Client, first_mode: Mode, second_mode: Mode) -> None:
    check_not_found(go_on(client, ended(client, first_mode, COMPLETED).id, second_mode))


@pytest.mark.parametrize("second_mode", MODES, ids=str)
def test_a_deleted_response_has_no_next_turn(client: Client, second_mode: Mode) -> None:
    first = ended(client, SYNC, COMPLETED)
    assert client.delete(first.path).status == 200
    check_not_found(go_on(client, first.id, second_mode))


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("mode", [SYNC, STREAM], ids=str)
def test_a_foreground_response_in_flight_has_no_next_turn(
    client: Client, control: Control, mode: Mode, moment: Moment
) -> None:
    with in_flight(client, control, mode, moment) as first:
        check_not_found(go_on(client, first.id))


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_a_background_response_in_flight_has_a_next_turn(
    client: Client, control: Control, mode: Mode, moment: Moment
) -> None:
    with in_flight(client, control, mode, moment) as first:
        answer = go_on(client, first.id)
        assert answer.status == 200
        assert text_of(answer.json).startswith(f"user:{first.script}")


@pytest.mark.parametrize("script", ["say a; raise", "say a; fail broken It broke.", "say a; incomplete content_filter"])
def test_a_turn_that_went_wrong_has_a_next_turn(client: Client, script: str) -> None:
    with asked(client, SYNC, script) as first:
        first.final()
    answer = go_on(client, first.id)
    assert answer.status == 200
    assert text_of(answer.json).startswith(f"user:{script}")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_chain_stays_in_one_partition(client: Client, mode: Mode) -> None:
    first = ended(client, SYNC, COMPLETED)
    body = {"input": "say a; call", "previous_response_id": first.id, **mode.fields}
    answer = client.post("/responses", body)
    response = answer.events[-1].response if mode.stream else answer.json
    assert partition_of(response["id"]) == partition_of(first.id)
    assert {partition_of(item["id"]) for item in response["output"]} <= {partition_of(first.id)}


@pytest.mark.parametrize("shape", ["string", "object"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_handler_is_told_the_conversation(client: Client, mode: Mode, shape: str) -> None:
    conversation = new_id("conv")
    given = conversation if shape == "string" else {"id": conversation}
    body = {"input": "tell conversation", "conversation": given, **mode.fields}
    with asked(client, mode, "tell conversation", conversation=given) as turn:
        final = turn.final()
    assert text_of(final) == conversation
    assert final["conversation"] == {"id": conversation}
    answer = client.post("/responses", body)
    response = answer.events[-1].response if mode.stream else answer.json
    assert partition_of(response["id"]) == partition_of(conversation)


def test_a_conversation_and_a_previous_response_may_both_be_given(client: Client) -> None:
    first = ended(client, SYNC, COMPLETED)
    answer = client.post("/responses", {"input": "say a", "conversation": "conv_1", "previous_response_id": first.id})
    assert answer.status == 200
