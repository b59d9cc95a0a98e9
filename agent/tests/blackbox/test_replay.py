"""Replay of a background stream from any number, while it runs and afterwards (contract section 4.8)."""

from __future__ import annotations

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.expectations import check_replay
from agent.tests.blackbox.turns import (
    BACKGROUND,
    BACKGROUND_STREAM,
    COMPLETED,
    ENDINGS,
    MOMENTS,
    Ending,
    Mode,
    Moment,
    Turn,
    asked,
    ended,
    in_flight,
)
from agent.tests.blackbox.wire import Client

STARTS = ["none", "0", "1", "3", "middle", "last", "beyond", "far-beyond", "-1", "-5"]
NOT_NUMBERS = ["abc", "1.5", "1e2", "one", "0x1", "1,2", "%20"]


def after(start: str, last: int) -> int | None:
    """The number a start stands for in a stream that ends with number `last`."""
    named = {"none": None, "middle": last // 2, "last": last, "beyond": last + 1, "far-beyond": last + 10**9}
    return named[start] if start in named else int(start)


def path(turn: Turn, number: int | None) -> str:
    return f"{turn.path}?stream=true" + ("" if number is None else f"&starting_after={number}")


def last_before(turn: Turn, moment: Moment) -> int:
    """The number of the last event before the handler came to its gate, read from the live stream."""
    kinds = {"waiting": "in_progress", "writing": "output_text.delta", "between-items": "output_item.done"}
    return int(turn.read_until(f"response.{kinds[moment.name]}").data["sequence_number"])


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_a_replay_after_the_end_is_what_was_streamed(client: Client, ending: Ending, start: str) -> None:
    turn = ended(client, BACKGROUND_STREAM, ending)
    last = len(turn.seen) - 1
    number = after(start, last)
    answer = client.get(path(turn, number))
    assert answer.status == 200
    wanted = turn.seen if number is None else [event for event in turn.seen if event.data["sequence_number"] > number]
    assert answer.events == wanted
    if wanted:
        check_replay(answer, turn.id, last - len(wanted))


@pytest.mark.parametrize("start", ["none", "0", "1", "-1"])
@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_replay_in_flight_goes_on_to_the_end(client: Client, control: Control, moment: Moment, start: str) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, moment) as turn:
        assert turn.gate is not None
        number = after(start, 0)
        with client.send("GET", path(turn, number)) as replay:
            assert replay.response.status == 200
            turn.gate.open()
            replayed = list(replay.events())
        live = turn.rest()
        assert replayed == [event for event in live if number is None or event.data["sequence_number"] > number]


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_replay_begins_before_there_is_anything_to_send(client: Client, control: Control, moment: Moment) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, moment) as turn:
        number = last_before(turn, moment)
        # Less than any interval of keep-alives, which would bring the head along.
        with client.send("GET", path(turn, number), timeout=8) as replay:
            assert replay.response.status == 200


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_many_replays_at_once_all_see_the_same(client: Client, control: Control, moment: Moment) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, moment) as turn:
        assert turn.gate is not None
        replays = [client.send("GET", path(turn, None)) for _ in range(8)]
        assert {replay.response.status for replay in replays} == {200}
        turn.gate.open()
        live = turn.rest()
        for replay in replays:
            with replay:
                assert list(replay.events()) == live


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_replay_can_be_left_and_taken_up_again(client: Client, control: Control, moment: Moment) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, moment) as turn:
        assert turn.gate is not None
        with client.send("GET", path(turn, None)) as first:
            head = [next(first.events())]
        with client.send("GET", path(turn, head[-1].data["sequence_number"])) as second:
            assert second.response.status == 200
            turn.gate.open()
            assert head + list(second.events()) == turn.rest()


@pytest.mark.parametrize("start", NOT_NUMBERS)
@pytest.mark.parametrize("running", [False, True], ids=["ended", "in-flight"])
def test_a_start_that_is_no_number(client: Client, control: Control, running: bool, start: str) -> None:
    def check(turn: Turn) -> None:
        answer = client.get(f"{turn.path}?stream=true&starting_after={start}")
        assert answer.status == 400
        assert answer.error["param"] == "starting_after"
        assert answer.error["message"] == "starting_after must be an integer"
        assert answer.error["code"] == "invalid_request_error"

    if running:
        with in_flight(client, control, BACKGROUND_STREAM, MOMENTS[1]) as turn:
            check(turn)
    else:
        check(ended(client, BACKGROUND_STREAM, COMPLETED))


@pytest.mark.parametrize("query", ["", "?stream=false", "?starting_after=1", "?stream=", "?include=x", "?stream=no"])
@pytest.mark.parametrize("mode", [BACKGROUND, BACKGROUND_STREAM], ids=str)
def test_anything_but_stream_true_is_a_snapshot(client: Client, mode: Mode, query: str) -> None:
    turn = ended(client, mode, COMPLETED)
    answer = client.call("GET", f"{turn.path}{query}", headers={"accept": "text/event-stream"})
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert answer.json["id"] == turn.id


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_the_live_stream_of_a_cancelled_response(client: Client, control: Control, moment: Moment) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, moment) as turn:
        assert client.post(f"{turn.path}/cancel").status == 200
        live = turn.rest()
        assert live[-1].kind == "response.failed"
        assert (live[-1].response["status"], live[-1].response["output"]) == ("cancelled", [])
        assert [event.data["sequence_number"] for event in live] == list(range(len(live)))


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_replay_that_is_followed_when_the_response_is_cancelled(
    client: Client, control: Control, moment: Moment
) -> None:
    with in_flight(client, control, BACKGROUND_STREAM, moment) as turn, client.send("GET", path(turn, None)) as replay:
        assert replay.response.status == 200
        assert client.post(f"{turn.path}/cancel").status == 200
        replayed = list(replay.events())
        assert replayed[-1].kind == "response.failed"
        assert replayed == turn.rest()


@pytest.mark.parametrize("leave_at", ["response.created", "response.output_text.delta"])
def test_a_background_stream_that_nobody_reads_any_more_can_be_replayed(
    client: Client, control: Control, leave_at: str
) -> None:
    gate = f"left-{leave_at}"
    with asked(client, BACKGROUND_STREAM, f"say a; gate {gate}; say b") as turn:
        if leave_at != "response.created":
            turn.read_until(leave_at)
        waiting = control.entered(gate)
        turn.exchange.close()
    waiting.open()
    turn.poll()
    events = check_replay(client.get(path(turn, None)), turn.id)
    assert events[: len(turn.seen)] == turn.seen
    assert events[-1].kind == "response.completed"
    waiting.close()
