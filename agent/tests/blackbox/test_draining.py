"""SIGTERM while responses are in flight (contract sections 1.4 and 9, rows 1 and 18)."""

from __future__ import annotations

import signal
import time

import pytest

from agent.tests.blackbox.conftest import Start
from agent.tests.blackbox.control import Control
from agent.tests.blackbox.expectations import check_events
from agent.tests.blackbox.process import AgentProcess
from agent.tests.blackbox.turns import BACKGROUND, BACKGROUND_STREAM, MODES, Mode, Turn, asked, eventually

EXITS_WITHIN = 25
CUTS_WITHIN = 9
"""Seconds for an agent that has one second to end: less than the ten that a handler in the background has otherwise."""
STORED = [mode for mode in MODES if mode.store]


def refused(agent: AgentProcess) -> bool:
    """Whether the agent takes up no new work: no connection any more, or the answer that it is shutting down."""
    if agent.refuses():
        return True
    try:
        answer = agent.client.post("/responses", {"input": "say late"})
    except OSError:
        return True
    if answer.status != 503:
        return False
    assert answer.error["code"] == "service_unavailable"
    assert answer.headers["x-platform-error-source"] == "platform"
    return True


def wait_until_refused(agent: AgentProcess) -> None:
    eventually(lambda: refused(agent) or None, "new work is refused")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_agent_exits_with_0(start: Start, number: signal.Signals) -> None:
    agent = start()
    agent.process.send_signal(number)
    assert agent.process.wait(EXITS_WITHIN) == 0


def test_an_agent_that_has_served_exits_with_0(start: Start) -> None:
    agent = start()
    for mode in MODES:
        with asked(agent.client, mode, "say a") as turn:
            turn.final()
    agent.terminate()
    assert agent.process.wait(EXITS_WITHIN) == 0


@pytest.mark.parametrize("seconds", [0, 1.5], ids=["at-once", "later"])
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_response_whose_handler_ends_in_time_is_whole(
    start: Start, control: Control, mode: Mode, seconds: float
) -> None:
    agent = start()
    name = f"drain-{mode}-{seconds}"
    with asked(agent.client, mode, f"say a; hold {name}; say b") as turn:
        gate = control.entered(name)
        agent.terminate()
        wait_until_refused(agent)
        # A server that looks now and then whether its callers are still there has looked meanwhile.
        time.sleep(seconds)
        gate.open()
        check_whole(turn)
        gate.close()
    assert agent.process.wait(EXITS_WITHIN) == 0
    if mode.store:
        # The same home: what was stored is found again.
        answer = start().client.get(turn.path)
        assert (answer.status, answer.json["status"]) == (200, "completed")
        assert answer.json["output"][0]["content"][0]["text"] == "ab"


def check_whole(turn: Turn) -> None:
    """The caller got all of it; a background caller has its answer already and looks later."""
    if turn.mode.stream:
        check_events(turn.rest(), 0, turn.id)
        assert turn.seen[-1].kind == "response.completed"
    elif not turn.mode.background:
        answer = turn.exchange.answer()
        assert answer.status == 200, answer
        assert answer.json["output"][0]["content"][0]["text"] == "ab"
        assert answer.headers["x-request-id"]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_handler_is_told_that_the_agent_stops(start: Start, control: Control, mode: Mode) -> None:
    agent = start()
    name = f"told-{mode}"
    with asked(agent.client, mode, f"say a; gate {name}; say b") as turn:
        gate = control.entered(name)
        agent.terminate()
        gate.wait_until_left()
        gate.close()
        if mode.stream:
            check_events(turn.rest(), 0, turn.id)
    assert agent.process.wait(EXITS_WITHIN) == 0


@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_a_background_response_that_was_cut_off_is_failed(start: Start, control: Control, mode: Mode) -> None:
    agent = start(AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS="1")
    name = f"cut-{mode}"
    with asked(agent.client, mode, f"call; hold {name}; say b") as turn:
        gate = control.entered(name)
        agent.terminate()
        assert agent.process.wait(CUTS_WITHIN) == 0
        gate.close()
    answer = start().client.get(turn.path)
    assert (answer.status, answer.json["status"]) == (200, "failed")
    assert answer.json["error"]["code"] == "server_error"


def test_a_stream_that_outlasts_the_time_is_cut(start: Start, control: Control) -> None:
    agent = start(AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS="1")
    with asked(agent.client, MODES[2], "say a; hold cut-stream; say b") as turn:
        gate = control.entered("cut-stream")
        agent.terminate()
        assert agent.process.wait(CUTS_WITHIN) == 0
        gate.close()
        turn.exchange.close()


@pytest.mark.parametrize("mode", STORED, ids=str)
def test_what_was_stored_is_found_after_a_restart(start: Start, mode: Mode) -> None:
    agent = start()
    with asked(agent.client, mode, "say a; call") as turn:
        final = turn.final()
    agent.terminate()
    assert agent.process.wait(EXITS_WITHIN) == 0
    client = start().client
    answer = client.get(turn.path)
    assert (answer.status, answer.json["output"]) == (200, final["output"])
    assert client.get(f"{turn.path}/input_items").json["data"][0]["content"][0]["text"] == "say a; call"
    followed = client.post("/responses", {"input": "history", "previous_response_id": turn.id})
    assert followed.json["output"][0]["content"][0]["text"].startswith("user:say a; call|assistant:a")
