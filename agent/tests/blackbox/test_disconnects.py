"""A caller that goes away (contract section 4.7)."""

from __future__ import annotations

from typing import Any

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.expectations import (
    CANCEL,
    DELETE,
    GET,
    INPUT_ITEMS,
    REPLAY,
    Operation,
    State,
    check,
    check_replay,
    expected,
)
from agent.tests.blackbox.turns import (
    BACKGROUND,
    BACKGROUND_STREAM,
    MODES,
    MOMENTS,
    STREAM,
    SYNC,
    Mode,
    Moment,
    asked,
    in_flight,
)
from agent.tests.blackbox.wire import Client

FOREGROUND = [mode for mode in MODES if not mode.background]


def leave(turn: Any) -> None:
    """Closes the connection, and waits until the handler has noticed."""
    turn.exchange.close()
    turn.gate.wait_until_left()


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("mode", FOREGROUND, ids=str)
def test_a_handler_is_told_that_its_caller_has_gone(
    client: Client, control: Control, mode: Mode, moment: Moment
) -> None:
    with in_flight(client, control, mode, moment) as turn:
        leave(turn)


@pytest.mark.parametrize("operation", [GET, REPLAY, CANCEL, DELETE, INPUT_ITEMS], ids=str)
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("mode", [SYNC, STREAM], ids=str)
def test_a_stored_response_whose_caller_has_gone_is_cancelled(
    client: Client, control: Control, mode: Mode, moment: Moment, operation: Operation
) -> None:
    with in_flight(client, control, mode, moment) as turn:
        leave(turn)
        assert turn.poll().json["status"] == "cancelled"
        wanted = expected(operation, State.FOREGROUND_ENDED)
        check(operation.run(client, turn.id), operation, turn.id, wanted, "cancelled")


@pytest.mark.parametrize("operation", [GET, REPLAY, CANCEL, DELETE, INPUT_ITEMS], ids=str)
@pytest.mark.parametrize("mode", [mode for mode in FOREGROUND if not mode.store], ids=str)
def test_nothing_is_left_of_an_unstored_response_whose_caller_has_gone(
    client: Client, control: Control, mode: Mode, operation: Operation
) -> None:
    with in_flight(client, control, mode, MOMENTS[1]) as turn:
        leave(turn)
        check(operation.run(client, turn.id), operation, turn.id, expected(operation, State.GONE))


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_a_background_response_goes_on_without_its_caller(
    client: Client, control: Control, mode: Mode, moment: Moment
) -> None:
    with in_flight(client, control, mode, moment) as turn:
        turn.exchange.close()
        # Another request that is answered: the agent has had the time to see the connection end.
        assert client.get(turn.path).json["status"] == "in_progress"
        assert turn.gate is not None
        turn.gate.open()
        final = turn.poll().json
        assert final["status"] == "completed"
        assert final["output"][-1]["content"][0]["text"].endswith("b")
        if mode.stream:
            assert check_replay(client.get(f"{turn.path}?stream=true"), turn.id)[-1].kind == "response.completed"


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_replay_that_is_left_harms_nobody(client: Client, control: Control, moment: Moment) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, moment) as turn:
        with client.send("GET", f"{turn.path}?stream=true") as replay:
            next(replay.events())
        assert client.get(turn.path).json["status"] == "in_progress"
        assert turn.gate is not None
        turn.gate.open()
        assert turn.final()["status"] == "completed"


@pytest.mark.parametrize("mode", FOREGROUND, ids=str)
def test_the_agent_serves_on_after_many_have_gone(client: Client, control: Control, mode: Mode) -> None:
    for number in range(5):
        with asked(client, mode, f"say a; gate gone-{mode}-{number}") as turn:
            turn.gate = control.entered(f"gone-{mode}-{number}")
            leave(turn)
            turn.gate.close()
    with asked(client, mode, "say fine") as turn:
        assert turn.final()["output"][0]["content"][0]["text"] == "fine"
