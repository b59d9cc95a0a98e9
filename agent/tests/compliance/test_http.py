"""The checks of the Open Responses suite over HTTP: basic-response, assistant-phase, system-prompt, tool-calling,
image-input, multi-turn, streaming-response, compact-response, compact-missing-model (contract section 8)."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from agent.tests.blackbox.process import AgentProcess
from agent.tests.blackbox.wire import TIMEOUT, Client, Event
from agent.tests.compliance.schemas import COMPACTION, RESPONSE, event_faults, faults

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def message(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content, **fields}


TOOL = {
    "type": "function",
    "name": "get_time",
    "description": "The time at a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
ASKED: dict[str, dict[str, Any]] = {
    "basic-response": {"input": [message("user", "Greet me in three words.")]},
    "system-prompt": {"input": [message("system", "Talk like a sailor."), message("user", "Greet me.")]},
    "image-input": {
        "input": [
            message(
                "user", [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": PIXEL}]
            )
        ]
    },
    "multi-turn": {
        "input": [
            message("user", "I am called Ada."),
            message("assistant", "Hello Ada!"),
            message("user", "What am I called?"),
        ]
    },
    "assistant-phase": {
        "input": [
            message("assistant", "Let me count.", phase="commentary"),
            message("assistant", "Five.", phase="final_answer"),
            message("user", "Again, please."),
        ]
    },
    "tool-calling": {"input": [message("user", "What time is it in Rome?")], "tools": [TOOL]},
    "tool without the rest": {"input": "What time is it?", "tools": [{"type": "function", "name": "get_time"}]},
    "every option": {
        "input": "Greet me.",
        "instructions": "Be brief.",
        "temperature": 0.5,
        "top_p": 0.5,
        "max_output_tokens": 100,
        "max_tool_calls": 1,
        "metadata": {"a": "b"},
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "truncation": "auto",
        "reasoning": {"effort": "low", "summary": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}},
        "service_tier": "default",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "top_logprobs": 2,
    },
    "half of reasoning": {"input": "Greet me.", "reasoning": {"effort": "low"}},
    "text without a format": {"input": "Greet me.", "text": {"verbosity": "low"}},
    "a tool that must be used": {
        "input": "What time is it?",
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "get_time"},
    },
    "no stored response": {"input": "Greet me.", "store": False},
}


@pytest.fixture
def client(sample: AgentProcess) -> Client:
    return sample.client


def check_response(response: Any, body: dict[str, Any]) -> None:
    assert faults(response, RESPONSE) == []
    assert response["status"] == "completed"
    assert response["output"]
    if body.get("tools"):
        assert "function_call" in [item["type"] for item in response["output"]]


@pytest.mark.parametrize("name", ASKED)
def test_a_response_has_every_field(client: Client, name: str) -> None:
    answer = client.post("/responses", {"model": "sample", **ASKED[name]})
    assert answer.status == 200, answer
    check_response(answer.json, ASKED[name])


@pytest.mark.parametrize("name", ASKED)
def test_a_stream_has_every_field(client: Client, name: str) -> None:
    answer = client.post("/responses", {"model": "sample", "stream": True, **ASKED[name]})
    assert answer.status == 200, answer
    assert answer.events
    assert [fault for event in answer.events for fault in event_faults(event.data)] == []
    assert answer.events[-1].kind == "response.completed"
    check_response(answer.events[-1].response, ASKED[name])


@pytest.mark.parametrize("name", [name for name in ASKED if ASKED[name].get("store") is not False])
def test_a_response_that_is_read_again_has_every_field(client: Client, name: str) -> None:
    made = client.post("/responses", {"model": "sample", **ASKED[name]}).json
    assert client.get(f"/responses/{made['id']}").json == made


def test_what_was_asked_is_echoed(client: Client) -> None:
    asked = {"model": "sample", **ASKED["every option"]}
    response = client.post("/responses", asked).json
    for name in asked.keys() - {"input", "text"}:
        assert response[name] == asked[name], name
    assert response["text"]["format"]["schema"] == asked["text"]["format"]["schema"]


def test_a_failed_response_has_every_field(client: Client) -> None:
    output = {"type": "function_call_output", "call_id": "nobody's", "output": "3"}
    answer = client.post("/responses", {"model": "sample", "stream": True, "input": [output]})
    assert [fault for event in answer.events for fault in event_faults(event.data)] == []
    assert answer.events[-1].kind == "response.failed"
    assert answer.events[-1].response["error"]["code"] == "tool_call_not_found"


def test_every_frame_of_a_stream_comes_in_one_piece(sample: AgentProcess) -> None:
    """A client that keeps no state between the chunks of an answer understands it."""
    body = b'{"model":"sample","input":"Greet me.","stream":true}'
    head = (
        f"POST /responses HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    received = b""
    with socket.create_connection(("127.0.0.1", sample.port), timeout=TIMEOUT) as connection:
        connection.sendall(head.encode() + body)
        while piece := connection.recv(65536):
            received += piece
    _, _, rest = received.partition(b"\r\n\r\n")
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    assert chunks.pop() == b""
    assert len(chunks) > 1
    for chunk in chunks:
        assert chunk.startswith(b"event: ")
        assert chunk.endswith(b"\n\n")


CONVERSATION = [
    message("user", "The code word is slate."),
    message("assistant", [{"type": "output_text", "text": "I will remember.", "annotations": []}]),
]


def test_a_conversation_is_compacted(client: Client) -> None:
    answer = client.post("/responses/compact", {"model": "sample", "input": CONVERSATION, "prompt_cache_key": "any"})
    assert answer.status == 200, answer
    assert faults(answer.json, COMPACTION) == []
    assert "compaction" in [item["type"] for item in answer.json["output"]]


@pytest.mark.parametrize("body", [{"input": CONVERSATION}, {"input": CONVERSATION, "model": None}, {}, {"model": 1}])
def test_compaction_wants_a_model(client: Client, body: dict[str, Any]) -> None:
    answer = client.post("/responses/compact", body)
    assert answer.status in (400, 422)
    assert answer.error["message"]
    assert answer.error["type"] == "invalid_request_error"


def test_a_compacted_conversation_goes_on(client: Client) -> None:
    compacted = client.post("/responses/compact", {"model": "sample", "input": CONVERSATION}).json["output"]
    asked = [*compacted, message("user", "And the word?")]
    answer = client.post("/responses", {"model": "sample", "input": asked, "stream": True})
    assert [fault for event in answer.events for fault in event_faults(event.data)] == []
    assert answer.events[-1].kind == "response.completed"


def test_a_stored_response_is_compacted(client: Client) -> None:
    first = client.post("/responses", {"model": "sample", "input": "The code word is slate."}).json
    answer = client.post("/responses/compact", {"model": "sample", "previous_response_id": first["id"]})
    assert answer.status == 200, answer
    assert faults(answer.json, COMPACTION) == []


PHASES = [
    {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "phase": phase,
        "content": [{"type": "output_text", "text": "x", "annotations": []}],
    }
    for phase in ("commentary", "final_answer")
]


def test_the_shapes_know_the_phases_of_a_message(client: Client) -> None:
    """response-output-phase-schema: a check of the shapes themselves."""
    response = client.post("/responses", {"model": "sample", "input": "x"}).json
    assert faults({**response, "output": PHASES}, RESPONSE) == []
    assert faults({**response, "output": [{**PHASES[0], "phase": "thinking"}]}, RESPONSE) != []


@pytest.mark.parametrize("field", RESPONSE)
def test_the_shapes_notice_what_is_missing(client: Client, field: str) -> None:
    response = client.post("/responses", {"model": "sample", "input": "x"}).json
    without = {name: value for name, value in response.items() if name != field}
    assert faults(without, RESPONSE) == [f"$.{field}: missing"]
    assert event_faults({"type": "response.created", "sequence_number": 0, "response": without})


def test_the_shapes_notice_an_event_nobody_knows() -> None:
    assert event_faults(Event("x", {"type": "response.dance", "sequence_number": 0}).data)
