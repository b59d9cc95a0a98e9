"""Comments that keep a silent stream open (contract section 2.1, SSE_KEEPALIVE_INTERVAL)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.expectations import check_events
from agent.tests.blackbox.process import AgentProcess, running
from agent.tests.blackbox.turns import BACKGROUND_STREAM, MOMENTS, STREAM, STREAM_UNSTORED, SYNC, Mode, asked, in_flight
from agent.tests.blackbox.wire import Client, Event, parse_frame

COMMENT = ": keep-alive"


@pytest.fixture(scope="module")
def kept_alive(control: Control, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    variables = {"CONTROL_SOCKET": str(control.path), "SSE_KEEPALIVE_INTERVAL": "1"}
    with running(tmp_path_factory.mktemp("kept-alive"), variables) as agent:
        yield agent


@pytest.mark.parametrize("mode", [STREAM, STREAM_UNSTORED, BACKGROUND_STREAM], ids=str)
def test_a_silent_stream_carries_comments(kept_alive: AgentProcess, control: Control, mode: Mode) -> None:
    with in_flight(kept_alive.client, control, mode, MOMENTS[1]) as turn:
        assert turn.gate is not None
        events = list(turn.seen)
        comments = 0
        for frame in turn.exchange.frames():
            event = parse_frame(frame)
            if event is not None:
                events.append(event)
                continue
            assert frame == COMMENT
            comments += 1
            if comments == 2:
                turn.gate.open()
        assert comments >= 2
        check_events(events, 0, turn.id)


def test_a_replay_that_waits_carries_comments(kept_alive: AgentProcess, control: Control) -> None:
    with in_flight(kept_alive.client, control, BACKGROUND_STREAM, MOMENTS[1]) as turn:
        assert turn.gate is not None
        with kept_alive.client.send("GET", f"{turn.path}?stream=true") as replay:
            events: list[Event] = []
            for frame in replay.frames():
                event = parse_frame(frame)
                if event is None:
                    assert frame == COMMENT
                    turn.gate.open()
                else:
                    events.append(event)
        assert events == turn.rest()


def test_a_stream_that_is_not_silent_carries_none(kept_alive: AgentProcess) -> None:
    with asked(kept_alive.client, STREAM, "say a; say b") as turn:
        assert COMMENT not in list(turn.exchange.frames())


def test_an_answer_that_is_no_stream_carries_none(kept_alive: AgentProcess) -> None:
    with asked(kept_alive.client, SYNC, "say a") as turn:
        assert COMMENT.encode() not in turn.exchange.answer().body


def test_comments_do_not_keep_a_stream_of_a_caller_who_left(
    kept_alive: AgentProcess, control: Control, client: Client
) -> None:
    with in_flight(kept_alive.client, control, STREAM, MOMENTS[1]) as turn:
        assert turn.gate is not None
        assert COMMENT in (next(frame for frame in turn.exchange.frames() if frame.startswith(":")))
        turn.exchange.close()
        turn.gate.wait_until_left()
