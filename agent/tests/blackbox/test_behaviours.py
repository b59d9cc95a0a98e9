"""What a handler gives, as its caller gets it, in every mode (contract sections 4.4 to 4.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from agent.tests.blackbox.agents.script import CITATION, ITEMS
from agent.tests.blackbox.expectations import check_events, check_response
from agent.tests.blackbox.turns import BACKGROUND_STREAM, MODES, STREAM, STREAM_UNSTORED, SYNC, Mode, asked, eventually
from agent.tests.blackbox.wire import Client, Event, partition_of

START = ("created", "in_progress")
SERVER_ERROR = {"code": "server_error", "message": "An internal server error occurred."}
STREAMS = (STREAM, STREAM_UNSTORED, BACKGROUND_STREAM)


def text_events(deltas: int, done: bool = True) -> tuple[str, ...]:
    started = ("output_item.added", "content_part.added", *("output_text.delta",) * deltas)
    return (*started, "output_text.done", "content_part.done", "output_item.done") if done else started


CALL_EVENTS = (
    "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
)  # fmt: skip
REASONING_EVENTS = (
    "output_item.added",
    "reasoning_summary_part.added",
    "reasoning_summary_text.delta",
    "reasoning_summary_text.done",
    "reasoning_summary_part.done",
    "output_item.done",
)
REFUSAL_EVENTS = (
    "output_item.added", "content_part.added", "refusal.delta", "refusal.done", "content_part.done", "output_item.done",
)  # fmt: skip
CITED_EVENTS = (
    "output_item.added", "content_part.added", "output_text.delta", "output_text.done", "output_text.annotation.added",
    "content_part.done", "output_item.done",
)  # fmt: skip
WHOLE_EVENTS = ("output_item.added", "output_item.done")


@dataclass(frozen=True)
class Behaviour:
    """A script, the events between `in_progress` and the terminal one, and the output that comes of it.

    `output` names each item in short; see `brief`. What is None is not looked at: of a text that was begun when the
    handler failed, an agent may keep as much as it likes.
    """

    name: str
    script: str
    events: Sequence[str] | None
    output: Sequence[str] | None
    status: str = "completed"
    error: Mapping[str, str] | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return self.name


BEHAVIOURS = [
    Behaviour("nothing", "", (), ()),
    Behaviour("one piece", "say hello", text_events(1), ["message hello"]),
    Behaviour("several pieces", "say a; say b; say c", text_events(3), ["message abc"]),
    Behaviour("many pieces", "; ".join(["say x"] * 200), text_events(200), [f"message {'x' * 200}"]),
    Behaviour("other scripts", "say żółć; say 漢字; say 🎉", text_events(3), ["message żółć漢字🎉"]),
    Behaviour("what JSON escapes", r'say "\n" \u0000 </script> &amp', text_events(1), [r'message "\n" \u0000 </script> &amp']),
    Behaviour("what frames are made of", "say data: event: : [DONE]", text_events(1), ["message data: event: : [DONE]"]),
    Behaviour("a long text", f"say {'long' * 20_000}", text_events(1), [f"message {'long' * 20_000}"]),
    Behaviour("a function call", "call", CALL_EVENTS, ["function_call add"]),
    Behaviour("two function calls", "call; call", CALL_EVENTS * 2, ["function_call add"] * 2),
    Behaviour("reasoning", "reason because", REASONING_EVENTS, ["reasoning because"]),
    Behaviour("reasoning and text", "reason because; say so", REASONING_EVENTS + text_events(1),
              ["reasoning because", "message so"]),
    Behaviour("a refusal", "refuse no", REFUSAL_EVENTS, ["refusal no"]),
    Behaviour("text and a function call", "say a; say b; call", text_events(2) + CALL_EVENTS,
              ["message ab", "function_call add"]),
    Behaviour("a function call and text", "call; say a", CALL_EVENTS + text_events(1), ["function_call add", "message a"]),
    Behaviour("text around a function call", "say a; call; say b", text_events(1) + CALL_EVENTS + text_events(1),
              ["message a", "function_call add", "message b"]),
    Behaviour("a text with a citation", "cite seen", CITED_EVENTS, ["message seen [url_citation]"]),
    *(Behaviour(f"{kind} whole", f"item {kind}", WHOLE_EVENTS, [kind]) for kind in ITEMS),
    *(Behaviour(f"{kind} and text", f"item {kind}; say a", WHOLE_EVENTS + text_events(1), [kind, "message a"])
      for kind in ITEMS),
    Behaviour("incomplete at once", "incomplete max_output_tokens", (), (), "incomplete", reason="max_output_tokens"),
    Behaviour("incomplete after text", "say a; incomplete max_output_tokens", text_events(1), ["message a"], "incomplete",
              reason="max_output_tokens"),
    Behaviour("filtered", "say a; incomplete content_filter", text_events(1), ["message a"], "incomplete",
              reason="content_filter"),
    Behaviour("failed at once", "fail rate_limit_exceeded Too fast.", (), (), "failed",
              {"code": "rate_limit_exceeded", "message": "Too fast."}),
    Behaviour("failed after an item", "call; fail server_error It broke.", CALL_EVENTS, ["function_call add"], "failed",
              {"code": "server_error", "message": "It broke."}),
    Behaviour("failed after text", "say a; fail server_error It broke.", text_events(1), ["message a"], "failed",
              {"code": "server_error", "message": "It broke."}),
    Behaviour("raised after an item", "call; raise", CALL_EVENTS, ["function_call add"], "failed", SERVER_ERROR),
    Behaviour("raised after two items", "call; reason r; raise", CALL_EVENTS + REASONING_EVENTS,
              ["function_call add", "reasoning r"], "failed", SERVER_ERROR),
    Behaviour("raised within a text", "say a; raise", None, None, "failed", SERVER_ERROR),
]  # fmt: skip


def brief(item: Mapping[str, Any]) -> str:
    """An output item in a few words."""
    match item["type"]:
        case "message":
            [part] = item["content"]
            if part["type"] == "refusal":
                return f"refusal {part['refusal']}"
            marks = [annotation["type"] for annotation in part["annotations"]]
            return f"message {part['text']}" + (f" [{','.join(marks)}]" if marks else "")
        case "function_call":
            assert (item["arguments"], item["call_id"]) == ('{"a":1}', "call_1")
            return f"function_call {item['name']}"
        case "reasoning":
            return f"reasoning {item['summary'][0]['text']}"
        case kind:
            given = ITEMS[kind]
            assert {name: item[name] for name in given} == given
            return str(kind)


def check_final(final: Any, response_id: str, behaviour: Behaviour) -> None:
    check_response(final, response_id, behaviour.status)
    assert final.get("error") == behaviour.error
    assert (final.get("incomplete_details") or {}).get("reason") == behaviour.reason
    output = final["output"]
    if behaviour.output is None:
        return
    assert [brief(item) for item in output] == list(behaviour.output)
    assert len({item["id"] for item in output}) == len(output)
    for item in output:
        assert partition_of(item["id"]) == partition_of(response_id)
        if item["type"] in ("message", "function_call"):
            assert item["status"] == "completed"
        if item["type"] == "message":
            assert item["role"] == "assistant"


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_response_a_handler_makes(client: Client, mode: Mode, behaviour: Behaviour) -> None:
    with asked(client, mode, behaviour.script) as turn:
        final = turn.final()
    check_final(final, turn.id, behaviour)
    if mode.store:
        # What is stored is what was answered.
        stored = client.get(turn.path).json
        for name in ("id", "status", "output", "error", "incomplete_details", "created_at", "completed_at"):
            assert stored.get(name) == final.get(name), name


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=str)
@pytest.mark.parametrize("mode", STREAMS, ids=str)
def test_the_events_of_what_a_handler_does(client: Client, mode: Mode, behaviour: Behaviour) -> None:
    with asked(client, mode, behaviour.script) as turn:
        events = turn.rest()
    check_events(events, 0, turn.id)
    kinds = [event.kind.removeprefix("response.") for event in events]
    if behaviour.events is not None:
        assert kinds == [*START, *behaviour.events, behaviour.status]
    check_chain(events)
    created = events[0].response
    assert (created["status"], created["output"]) == ("in_progress", [])
    if behaviour.status in ("completed", "incomplete"):
        assert [event.data["item"] for event in events if event.kind == "response.output_item.done"] == events[
            -1
        ].response["output"]
    if mode is BACKGROUND_STREAM:
        assert client.get(f"{turn.path}?stream=true").events == events


def check_chain(events: list[Event]) -> None:
    """Items open in order, parts within items, deltas add up to what is done (contract section 4.5)."""
    opened: dict[int, Any] = {}
    texts: dict[tuple[int, int], str] = {}
    for event in events:
        data = event.data
        index = data.get("output_index")
        match event.kind.removeprefix("response."):
            case "output_item.added":
                assert index == len(opened)
                opened[index] = data["item"]
            case "output_item.done":
                assert data["item"]["id"] == opened[index]["id"]
                assert data["item"]["type"] == opened[index]["type"]
            case "output_text.delta" | "refusal.delta":
                part = (index, data["content_index"])
                texts[part] = texts.get(part, "") + data["delta"]
            case "output_text.done":
                assert data["text"] == texts[index, data["content_index"]]
            case "refusal.done":
                assert data["refusal"] == texts[index, data["content_index"]]
            case "function_call_arguments.done":
                assert data["name"] == opened[index]["name"]
        if "item_id" in data:
            assert data["item_id"] == opened[index]["id"]


@pytest.mark.parametrize("mode", STREAMS, ids=str)
def test_events_of_text_have_the_fields_clients_read(client: Client, mode: Mode) -> None:
    with asked(client, mode, "say a; say b") as turn:
        events = {event.kind.removeprefix("response."): event.data for event in turn.rest()}
    assert events["output_item.added"]["item"]["status"] == "in_progress"
    assert events["output_item.added"]["item"]["content"] == []
    assert events["content_part.added"]["part"]["type"] == "output_text"
    assert events["content_part.added"]["part"]["text"] == ""
    assert (events["output_text.delta"]["delta"], events["output_text.delta"]["logprobs"]) == ("b", [])
    assert (events["output_text.done"]["text"], events["output_text.done"]["logprobs"]) == ("ab", [])
    assert events["content_part.done"]["part"]["text"] == "ab"
    assert events["output_item.done"]["item"]["status"] == "completed"


@pytest.mark.parametrize("mode", STREAMS, ids=str)
def test_a_call_opens_with_empty_arguments(client: Client, mode: Mode) -> None:
    with asked(client, mode, "call") as turn:
        events = {event.kind.removeprefix("response."): event.data for event in turn.rest()}
    assert events["output_item.added"]["item"]["arguments"] == ""
    assert events["function_call_arguments.done"]["arguments"] == '{"a":1}'
    assert events["output_item.done"]["item"]["arguments"] == '{"a":1}'


@pytest.mark.parametrize("mode", STREAMS, ids=str)
def test_annotations_are_kept_everywhere(client: Client, mode: Mode) -> None:
    with asked(client, mode, "cite seen") as turn:
        events = {event.kind.removeprefix("response."): event.data for event in turn.rest()}
    assert events["output_text.annotation.added"]["annotation"] == CITATION
    assert events["content_part.done"]["part"]["annotations"] == [CITATION]
    assert events["output_item.done"]["item"]["content"][0]["annotations"] == [CITATION]
    assert events["completed"]["response"]["output"][0]["content"][0]["annotations"] == [CITATION]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_handler_that_raises_before_it_gave_anything(client: Client, mode: Mode) -> None:
    if mode.stream:
        body = {"input": "raise", **mode.fields}
        events = client.post("/responses", body).events
        # Either the stream got to `created`, or it is one `error` event.
        if len(events) == 1:
            assert events[0].kind == "error"
            assert events[0].data["message"] == SERVER_ERROR["message"]
            assert events[0].data["sequence_number"] == 0
        else:
            check_events(events, 0, events[0].response["id"])
            assert events[-1].kind == "response.failed"
            assert events[-1].response["error"] == SERVER_ERROR
        return
    answer = client.post("/responses", {"input": "raise", **mode.fields})
    if mode.background:
        assert answer.status == 200
        failed = asked_state(client, answer.json["id"])
        assert (failed["status"], failed["error"]) == ("failed", SERVER_ERROR)
        return
    assert answer.status == 500
    assert answer.json == {
        "error": {
            "message": "internal server error", "type": "server_error", "code": "server_error", "param": None,
        }
    }  # fmt: skip
    assert answer.headers["x-platform-error-source"] == "upstream"


def asked_state(client: Client, response_id: str) -> Any:
    """The response once it has ended."""

    def look() -> Any:
        answer = client.get(f"/responses/{response_id}")
        assert answer.status == 200
        return None if answer.json["status"] in ("queued", "in_progress") else answer.json

    return eventually(look, f"{response_id} ends")


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("script", ["raise", "say a; raise", "call; raise"])
def test_what_was_raised_is_never_shown(client: Client, mode: Mode, script: str) -> None:
    answer = client.post("/responses", {"input": script, **mode.fields})
    assert b"secret" not in answer.body
    assert b"LookupError" not in answer.body
    assert "secret" not in str(answer.headers)


@pytest.mark.parametrize("script", ["say a; raise", "raise", "call; say a; raise"])
def test_an_agent_serves_on_after_a_failure(client: Client, script: str) -> None:
    client.post("/responses", {"input": script})
    with asked(client, SYNC, "say fine") as turn:
        assert turn.final()["output"][0]["content"][0]["text"] == "fine"


ECHOED: dict[str, Any] = {
    "metadata": {"a": "1", "b": ""},
    "instructions": "Be brief.",
    "temperature": 0.5,
    "top_p": 0.25,
    "max_output_tokens": 100,
    "truncation": "auto",
    "user": "u",
    "parallel_tool_calls": True,
    "tool_choice": "none",
    "tools": [
        {"type": "function", "name": "add", "description": "Adds", "parameters": {"type": "object"}, "strict": True}
    ],
    "service_tier": "flex",
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "text"}},
    "conversation": {"id": "conv_1"},
    "agent_reference": {"type": "agent_reference", "name": "someone", "version": "3"},
}


@pytest.mark.parametrize("field", ECHOED)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_field_of_the_request_is_echoed(client: Client, mode: Mode, field: str) -> None:
    with asked(client, mode, "say a", **{field: ECHOED[field]}) as turn:
        final = turn.final()
    assert final[field] == ECHOED[field]
    if field == "agent_reference":
        assert final["output"][0]["agent_reference"] == ECHOED[field]


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_mode_is_told(client: Client, mode: Mode) -> None:
    with asked(client, mode, "say a") as turn:
        final = turn.final()
    assert bool(final.get("background")) == mode.background
