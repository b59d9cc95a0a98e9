import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from cupola_agent import items
from cupola_agent.responses.output import SERVER_ERROR, Ending, OutputError
from cupola_agent.responses.raw import RawEvents, is_raw_event
from cupola_agent.responses.writers import write_item
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from agent.tests.responses.recording import RESPONSE_ID, Recording, silent_output
from agent.tests.responses.test_writers import ITEMS

Json = dict[str, Any]

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def lifecycle(name: str, status: str | None = None, response_id: str | None = RESPONSE_ID, **fields: Any) -> Json:
    response = {"id": response_id, "object": "response", "status": status or name, **fields}
    return {"type": f"response.{name}", "response": response}


CREATED = lifecycle("created", "in_progress")
IN_PROGRESS = lifecycle("in_progress")
COMPLETED = lifecycle("completed")


def added(index: int = 0, item_id: str | None = "msg_1", **fields: Any) -> Json:
    item = {"type": "message", "role": "assistant", "status": "in_progress", "content": [], "id": item_id, **fields}
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def done(index: int = 0, text: str = "", item_id: str | None = "msg_1", **fields: Any) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"type": "message", "role": "assistant", "status": "completed", "content": content, "id": item_id, **fields}
    return {"type": "response.output_item.done", "output_index": index, "item": item}


def of_item(kind: str, index: int = 0, **fields: Any) -> Json:
    return {"type": f"response.{kind}", "output_index": index, "item_id": "msg_1", **fields}


def part(what: str, index: int = 0, text: str = "") -> Json:
    fields = {"part": {"type": "output_text", "text": text, "annotations": []}}
    return of_item(f"content_part.{what}", index, content_index=0, **fields)


def said(text: str, index: int = 0) -> list[Json]:
    return [
        added(index),
        part("added", index),
        of_item("output_text.delta", index, content_index=0, delta=text),
        of_item("output_text.done", index, content_index=0, text=text),
        part("done", index, text),
        done(index, text),
    ]


def apply(recording: Recording, events: Iterable[Any]) -> None:
    raw = RawEvents(recording.output)
    for event in events:
        raw.apply(event)
    raw.finish()


def test_events_pass_with_numbers_and_stamps_of_this_response() -> None:
    recording = Recording()
    events = [{**event, "sequence_number": 7} for event in (CREATED, IN_PROGRESS, *said("hello"), COMPLETED)]
    apply(recording, events)
    # `created` and `in_progress` are told before the handler runs, and the terminal event after it.
    assert [event["type"] for event in recording.events] == [event["type"] for event in said("hello")]
    assert recording.output.ending == Ending.completed()
    (item,) = recording.output.response["output"]
    assert item["response_id"] == RESPONSE_ID
    assert item["content"][0]["text"] == "hello"
    recording.check()


def test_what_nobody_sees_ends_in_the_same_output() -> None:
    output = silent_output()
    raw = RawEvents(output)
    for event in (CREATED, *said("hello"), COMPLETED):
        raw.apply(event)
    assert output.response["output"][0]["content"][0]["text"] == "hello"


def test_a_response_shows_its_items_while_it_grows() -> None:
    recording = Recording()
    raw = RawEvents(recording.output)
    for event in (CREATED, *said("hello"), added(1, "msg_2")):
        raw.apply(event)
    assert [item["status"] for item in recording.output.response["output"]] == ["completed", "in_progress"]


def test_fields_of_another_models_response_are_taken_but_not_its_identity() -> None:
    recording = Recording()
    usage = {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    foreign = {"created_at": 5, "store": False, "previous_response_id": "resp_0", "user": None}
    apply(
        recording,
        [
            lifecycle("created", "in_progress", "resp_1", model="small", **foreign),
            added(item_id="msg_a", response_id="resp_1"),
            done(item_id="msg_a", response_id="resp_1"),
            lifecycle("completed", None, "resp_1", model="small", usage=usage, output=[done()["item"]], **foreign),
        ],
    )
    response = recording.output.response
    assert (response["model"], response["usage"]) == ("small", usage)
    assert (response["id"], response["created_at"], response["store"]) == (RESPONSE_ID, 1, True)
    assert response["previous_response_id"] is None
    assert response["output"][0]["response_id"] == RESPONSE_ID
    assert response["output"][0]["id"] == "msg_a"
    assert "resp_1" not in str(recording.events)


@pytest.mark.parametrize("item_id", [None, "", "no good\n", 3])
def test_an_item_id_that_is_not_well_formed_is_replaced_in_all_events(item_id: Any) -> None:
    recording = Recording()
    apply(recording, [CREATED, added(item_id=item_id), part("added"), part("done"), done(item_id=item_id), COMPLETED])
    recording.check()
    assert recording.output.response["output"][0]["id"].startswith("msg_")


def test_an_item_is_known_by_its_index_where_another_model_changes_the_id_on_the_way() -> None:
    recording = Recording()
    apply(recording, [CREATED, added(item_id="a"), part("added"), part("done"), done(item_id="b"), COMPLETED])
    recording.check()
    assert recording.output.response["output"][0]["id"] == "a"


def test_indexes_are_renumbered_in_the_order_of_added() -> None:
    recording = Recording()
    apply(recording, [CREATED, added(5, "a"), added(2, "b"), done(2), done(5), COMPLETED])
    assert [event["output_index"] for event in recording.events] == [0, 1, 1, 0]
    recording.check()


def test_a_queued_response_is_told_as_such() -> None:
    recording = Recording()
    apply(recording, [lifecycle("created", "queued"), lifecycle("queued"), IN_PROGRESS, COMPLETED])
    assert recording.names == ["queued", "in_progress"]
    assert recording.events[0]["response"]["status"] == "queued"
    assert recording.output.status == "in_progress"


def test_events_of_no_item_pass() -> None:
    recording = Recording()
    audio = {"type": "response.audio.delta", "delta": "AAAA"}
    apply(recording, [CREATED, audio, {"type": "response.hologram.turned", "degrees": 90}, COMPLETED])
    assert recording.told("audio.delta") == [{"delta": "AAAA"}]
    assert recording.told("hologram.turned") == [{"degrees": 90}]


def test_a_text_without_parts_passes_as_it_does_with_the_reference() -> None:
    recording = Recording()
    apply(recording, [CREATED, added(), of_item("output_text.delta", content_index=0, delta="a"), done(), COMPLETED])
    recording.check()


@pytest.mark.parametrize(
    ("event", "ending"),
    [
        (COMPLETED, Ending.completed()),
        (
            lifecycle("failed", error={"code": "quota", "message": "Enough.", "more": 1}),
            Ending.failed({"code": "quota", "message": "Enough."}),
        ),
        (lifecycle("failed"), Ending.failed()),
        (lifecycle("failed", "cancelled"), Ending.cancelled()),
        (
            lifecycle("incomplete", incomplete_details={"reason": "content_filter"}),
            Ending.incomplete("content_filter"),
        ),
        ({"type": "response.completed", "response": {}}, Ending.completed()),
    ],
)
def test_the_terminal_event_is_the_last_word(event: Json, ending: Ending) -> None:
    recording = Recording()
    apply(recording, [CREATED, event])
    assert recording.output.ending == ending
    assert recording.events == []


_HALF = [
    (
        [added(), part("added"), of_item("output_text.delta", content_index=0, delta="ha"), part("done", text="half")],
        {"content": [{"type": "output_text", "text": "ha", "annotations": []}]},
    ),
    (
        [added(), part("added"), of_item("output_text.delta", content_index=0, delta="half")],
        {"content": [{"type": "output_text", "text": "half", "annotations": []}]},
    ),
    (
        [added(), of_item("refusal.delta", content_index=0, delta="no")],
        {"content": [{"type": "refusal", "refusal": "no"}]},
    ),
    (
        [added(type="reasoning"), of_item("reasoning_summary_text.delta", summary_index=0, delta="why")],
        {"summary": [{"type": "summary_text", "text": "why"}]},
    ),
    (
        [added(type="function_call"), *(of_item("function_call_arguments.delta", delta=text) for text in ("{", '"a"'))],
        {"arguments": '{"a"'},
    ),
]


@pytest.mark.parametrize(("events", "fields"), _HALF)
@pytest.mark.parametrize("last", [[lifecycle("failed")], [lifecycle("incomplete")], [{"type": "error"}], []])
def test_what_is_open_at_a_failure_ends_as_incomplete_with_what_was_told(
    events: list[Json], fields: Json, last: list[Json]
) -> None:
    recording = Recording()
    raw = RawEvents(recording.output)
    for event in (CREATED, *events, *last):
        raw.apply(event)
    raw.interrupt()
    (item,) = recording.output.response["output"]
    assert {"status": "incomplete", **fields}.items() <= item.items()


_ERROR = {"code": "overloaded", "message": "Later.", "param": None}


@pytest.mark.parametrize("event", [{"type": "error", **_ERROR}, {"type": "error", "error": _ERROR}])
@pytest.mark.parametrize("more", [[], [lifecycle("failed")]])
def test_an_error_event_is_told_in_both_shapes_and_fails_the_response(event: Json, more: list[Json]) -> None:
    recording = Recording()
    apply(recording, [CREATED, event, *more])
    assert recording.events == [
        {"type": "error", **_ERROR, "error": {"type": "server_error", **_ERROR}, "sequence_number": 0}
    ]
    assert recording.output.ending == Ending.failed({"code": "overloaded", "message": "Later."})


_ELSEWHERE = "caresp_" + "f" * 16 + "00" + "B" * 32
_EXPECTED_CREATED = "expected response.created; came "


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([IN_PROGRESS], _EXPECTED_CREATED + "response.in_progress"),
        ([added()], _EXPECTED_CREATED + "response.output_item.added"),
        ([COMPLETED], _EXPECTED_CREATED + "response.completed"),
        ([{"type": "error", "message": "boom"}], _EXPECTED_CREATED + "error"),
        ([lifecycle("created", "in_progress", _ELSEWHERE)], f"expected response id {RESPONSE_ID}; came {_ELSEWHERE}"),
        ([lifecycle("created", "completed")], "expected status in_progress or queued; came completed"),
        ([lifecycle("created", "failed")], "expected status in_progress or queued; came failed"),
        ([{"type": "response.created"}], "carries no response"),
        ([CREATED, CREATED], "came response.created"),
        (
            [lifecycle("created", "in_progress", "resp_1"), lifecycle("completed", None, "resp_2")],
            "expected response id resp_1; came resp_2",
        ),
        ([CREATED, lifecycle("completed", "failed")], "expected status completed; came failed"),
        ([CREATED, lifecycle("failed", "completed")], "expected status cancelled or failed; came completed"),
        ([CREATED, lifecycle("incomplete", "completed")], "expected status incomplete; came completed"),
        ([CREATED, COMPLETED, COMPLETED], "expected nothing after the terminal event; came response.completed"),
        ([CREATED, COMPLETED, added()], "expected nothing after the terminal event; came response.output_item.added"),
        ([CREATED, {"type": "error"}, added()], "expected response.failed; came response.output_item.added"),
        ([CREATED, of_item("output_text.delta", content_index=0, delta="a")], "output_index 0 is not added"),
        ([CREATED, done()], "output_index 0 is not added"),
        ([CREATED, added(), done(), done()], "output_index 0 is done"),
        ([CREATED, added(), added()], "output_index 0 was added before"),
        (
            [CREATED, added(), done(), of_item("output_text.delta", content_index=0, delta="a")],
            "output_index 0 is done",
        ),
        ([CREATED, added(), {"type": "response.output_text.delta", "delta": "a"}], "expected output_index, a number"),
        ([CREATED, added(), of_item("output_text.delta", content_index=0)], "expected delta, a text; came NoneType"),
        ([CREATED, added(), of_item("output_text.delta", delta="a")], "expected content_index, a number"),
        ([CREATED, added(), of_item("reasoning_summary_text.delta", delta="a")], "expected summary_index, a number"),
        ([CREATED, added(), part("done")], "part 0 of content was not added, or is done"),
        ([CREATED, added(), part("added"), done()], "expected the `done` of part"),
        ([CREATED, {"type": "response.output_item.added", "item": {"type": "x"}}], "expected output_index"),
        ([CREATED, {"type": "response.output_item.added", "output_index": 0}], "expected an item with a type"),
        ([CREATED, added(), done(type="reasoning")], "expected an item of type message; came reasoning"),
        ([CREATED, added(), COMPLETED], "expected response.output_item.done of output_index 0"),
        ([CREATED, lifecycle("completed", output=[{"type": "message"}])], "as it was told"),
        ([CREATED, added(), done(), lifecycle("completed", output=[{"type": "reasoning"}])], "as it was told"),
        ([CREATED, {"type": "response.hologram.turned", "degrees": object()}], "not JSON"),
        ([CREATED, {"type": "response.a\n\ndata: injected"}], "expected an event `response.…`"),
        ([CREATED, {"type": "response."}], "expected an event `response.…`"),
        ([CREATED], "the events ended: expected response.completed or response.failed or response.incomplete"),
        ([], "the events ended"),
    ],
)
def test_what_the_protocol_does_not_allow_is_refused(events: list[Json], says: str) -> None:
    with pytest.raises(OutputError) as refused:
        apply(Recording(), events)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("piece", "raw"),
    [
        (CREATED, True),
        ({"type": "error"}, True),
        ({"type": "message"}, False),
        ({"type": 3}, False),
        ({}, False),
        ("response.created", False),
        (items.Message("a"), False),
        (_EVENT.validate_python({"type": "error", "message": "boom", "sequence_number": 0}), True),
    ],
)
def test_events_are_told_from_items(piece: Any, raw: bool) -> None:
    assert is_raw_event(piece) is raw


def upstream(given_items: Iterable[Any]) -> list[Json]:
    """What another model's server would send for these items."""
    recording = Recording()
    recording.output.begin()
    for item in given_items:
        write_item(recording.output, item)
    recording.output.settle(Ending.completed())
    recording.output.tell_end()
    text = json.dumps(recording.events).replace(RESPONSE_ID, "resp_upstream")
    events: list[Json] = json.loads(text)
    return events


def from_openai(events: list[Json]) -> list[Any]:
    """The events as the `openai` package gives them to a handler."""
    return [_EVENT.validate_python(event) for event in events]


@pytest.mark.parametrize("given_by", [list, from_openai])
def test_the_stream_of_another_model_passes_whole(given_by: Callable[[list[Json]], list[Any]]) -> None:
    given_items = [
        items.Reasoning("why"),
        items.Message("hello", [items.UrlCitation("https://a.example")]),
        items.FunctionCall("f", {"a": 1}),
        items.FileSearchCall(["q"], []),
        items.McpListTools("s"),
    ]
    sent = upstream(given_items)
    recording = Recording()
    apply(recording, given_by(sent))
    recording.check()
    assert "resp_upstream" not in str(recording.events)
    told = [event["type"].removeprefix("response.") for event in sent]
    assert recording.names == [name for name in told if name not in ("created", "in_progress", "completed")]
    assert [item["id"] for item in recording.output.response["output"]] == [
        item["id"] for item in sent[-1]["response"]["output"]
    ]


@given(st.lists(ITEMS, max_size=5))
def test_any_sound_stream_passes(given_items: list[Any]) -> None:
    sent = upstream(given_items)
    recording = Recording()
    apply(recording, sent)
    recording.check()
    assert len(recording.events) == len(sent) - 3


_STRANGE = st.sampled_from(
    [
        CREATED,
        IN_PROGRESS,
        COMPLETED,
        added(),
        added(1),
        done(),
        done(1),
        part("added"),
        part("done"),
        {"type": "error"},
    ]
    + [{"type": f"response.{name}"} for name in ("output_item.added", "completed", "output_text.delta", "x")]
)


@given(st.lists(_STRANGE, max_size=12))
def test_whatever_comes_what_was_told_has_numbers_without_gaps(events: list[Json]) -> None:
    recording = Recording()
    raw = RawEvents(recording.output)
    for event in [CREATED, *events]:
        try:
            raw.apply(event)
        except OutputError:
            break
    assert [event["sequence_number"] for event in recording.events] == list(range(len(recording.events)))
    assert recording.output.ending in (None, Ending.completed(), Ending.failed(SERVER_ERROR))
