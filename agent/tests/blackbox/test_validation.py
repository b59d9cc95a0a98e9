"""Requests that are refused, and how; requests that look odd and are not (contract section 4.3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from agent.tests.blackbox.turns import MODES, STREAM, SYNC, Mode
from agent.tests.blackbox.wire import Answer, Client, new_id


def refused(answer: Answer, code: str, param: str | None) -> Any:
    """Checks what all refusals have in common; gives the error."""
    assert answer.status == 400, answer
    error = answer.error
    assert (error["code"], error["type"], error["param"]) == (code, "invalid_request_error", param)
    assert error["additionalInfo"]["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["x-platform-error-source"] == "user"
    assert answer.headers["content-type"].startswith("application/json")
    assert "x-agent-session-id" not in answer.headers
    assert "x-platform-error-detail" not in answer.headers
    return error


NOT_JSON = {
    "empty": b"",
    "blank": b"  ",
    "cut off": b'{"input": "a"',
    "two values": b"{} {}",
    "a word": b"hello",
    "not UTF-8": b'{"input": "\xff\xfe"}',
    "single quotes": b"{'input': 'a'}",
    "trailing comma": b'{"input": "a",}',
    "form": b"input=a&stream=true",
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_a_body_that_is_not_json(client: Client, name: str) -> None:
    error = refused(client.post("/responses", NOT_JSON[name]), "invalid_request_error", None)
    assert error["message"]


@pytest.mark.parametrize("body", ["[]", "[{}]", "1", '"text"', "null", "true", "1.5"])
def test_a_body_that_is_no_object(client: Client, body: str) -> None:
    error = refused(client.post("/responses", body.encode()), "invalid_request", None)
    assert error["message"] == "request body must be a JSON object"


@dataclass(frozen=True)
class Violation:
    """A body, and where in it the fault is. `message` is what the detail says, None when any words will do."""

    body: Mapping[str, Any]
    param: str
    message: str | None = None

    def __str__(self) -> str:
        return json.dumps(self.body)[:80]


MESSAGE = {"type": "message", "role": "user", "content": "say a"}
VIOLATIONS = [
    Violation({"input": 1}, "$.input", "Expected one of: string, array; got integer"),
    Violation({"input": {}}, "$.input", "Expected one of: string, array; got object"),
    Violation({"input": True}, "$.input", "Expected one of: string, array; got boolean"),
    Violation({"model": 1}, "$.model", "Expected string, got integer"),
    Violation({"model": ["m"]}, "$.model", "Expected string, got array"),
    Violation({"stream": "true"}, "$.stream", "Expected boolean, got string"),
    Violation({"stream": 1}, "$.stream", "Expected boolean, got integer"),
    Violation({"store": "no"}, "$.store", "Expected boolean, got string"),
    Violation({"background": 1}, "$.background", "Expected boolean, got integer"),
    Violation({"background": "yes"}, "$.background", "Expected boolean, got string"),
    Violation({"temperature": "hot"}, "$.temperature", "Expected number, got string"),
    Violation({"temperature": True}, "$.temperature"),
    Violation({"top_p": []}, "$.top_p", "Expected number, got array"),
    Violation({"max_output_tokens": "many"}, "$.max_output_tokens", "Expected integer, got string"),
    Violation({"max_output_tokens": {}}, "$.max_output_tokens"),
    Violation({"max_tool_calls": "1"}, "$.max_tool_calls", "Expected integer, got string"),
    Violation({"top_logprobs": "1"}, "$.top_logprobs", "Expected integer, got string"),
    Violation({"parallel_tool_calls": "yes"}, "$.parallel_tool_calls", "Expected boolean, got string"),
    Violation({"metadata": "m"}, "$.metadata", "Expected object, got string"),
    Violation({"metadata": []}, "$.metadata", "Expected object, got array"),
    Violation({"previous_response_id": 1}, "$.previous_response_id", "Expected string, got integer"),
    Violation({"conversation": 1}, "$.conversation"),
    Violation({"conversation": []}, "$.conversation"),
    Violation({"instructions": 1}, "$.instructions"),
    Violation({"tools": {}}, "$.tools", "Expected array, got object"),
    Violation({"tools": "all"}, "$.tools", "Expected array, got string"),
    Violation({"include": "all"}, "$.include", "Expected array, got string"),
    Violation({"user": 1}, "$.user", "Expected string, got integer"),
    Violation({"truncation": "some"}, "$.truncation", "Invalid value 'some'. Allowed: auto, disabled"),
    Violation({"service_tier": "gold"}, "$.service_tier",
              "Invalid value 'gold'. Allowed: auto, default, flex, scale, priority, fast, ultrafast"),
    Violation({"reasoning": "much"}, "$.reasoning", "Expected object, got string"),
    Violation({"text": "plain"}, "$.text", "Expected object, got string"),
    Violation({"tool_choice": 1}, "$.tool_choice"),
    Violation({"stream_options": "x", "stream": True}, "$.stream_options", "Expected object, got string"),
    Violation({"safety_identifier": 1}, "$.safety_identifier", "Expected string, got integer"),
    Violation({"prompt_cache_key": 1}, "$.prompt_cache_key", "Expected string, got integer"),
    Violation({"agent_session_id": 1}, "$.agent_session_id", "Expected string, got integer"),
    Violation({"input": ["text"]}, "$.input[0]", "Expected object, got string"),
    Violation({"input": [1]}, "$.input[0]", "Expected object, got integer"),
    Violation({"input": [MESSAGE, None]}, "$.input[1]"),
    Violation({"input": [{"type": "message", "content": "x"}]}, "$.input[0].role", "Required property 'role' is missing"),
    Violation({"input": [{"type": "message", "role": "user"}]}, "$.input[0].content",
              "Required property 'content' is missing"),
    Violation({"input": [{"role": "user", "content": 1}]}, "$.input[0].content"),
    Violation({"input": [{"role": "nobody", "content": "x"}]}, "$.input[0].role"),
    Violation({"input": [{"type": "telegram"}]}, "$.input[0].type"),
    Violation({"input": [{"type": 1}]}, "$.input[0].type"),
    Violation({"input": [MESSAGE, MESSAGE, {"type": "message", "content": "x"}]}, "$.input[2].role"),
    Violation({"input": [{"type": "function_call", "call_id": "c", "arguments": "{}"}]}, "$.input[0].name",
              "Required property 'name' is missing"),
    Violation({"tools": ["search"]}, "$.tools[0]", "Expected object, got string"),
    Violation({"tools": [{"type": "hammer"}]}, "$.tools[0].type"),
    Violation({"tools": [{"type": "function"}]}, "$.tools[0].name", "Required property 'name' is missing"),
    Violation({"tools": [{"type": "function", "name": 1}]}, "$.tools[0].name"),
]  # fmt: skip


@pytest.mark.parametrize("violation", VIOLATIONS, ids=str)
@pytest.mark.parametrize("mode", [SYNC, STREAM], ids=str)
def test_a_body_against_the_schema(client: Client, mode: Mode, violation: Violation) -> None:
    answer = client.post("/responses", {**mode.fields, **violation.body})
    error = refused(answer, "invalid_request", None)
    assert error["message"] == "request body failed schema validation"
    details = {detail["param"]: detail for detail in error["details"]}
    assert violation.param in details
    detail = details[violation.param]
    assert detail["code"] == "invalid_value"
    if violation.message:
        assert detail["message"] == violation.message
    assert [item["param"] for item in error["details"]] == sorted(item["param"] for item in error["details"])


def test_all_faults_are_named_at_once(client: Client) -> None:
    body = {"model": 1, "stream": "x", "input": [{"role": "user", "content": 1}], "tools": 1}
    error = refused(client.post("/responses", body), "invalid_request", None)
    assert {detail["param"] for detail in error["details"]} >= {"$.model", "$.stream", "$.tools"}
    assert len(error["details"]) >= 4


@dataclass(frozen=True)
class Refused:
    """A body of the right shape that is refused, and what the answer says."""

    body: Mapping[str, Any]
    code: str
    message: str
    param: str

    def __str__(self) -> str:
        return f"{self.param}: {json.dumps(self.body)[:50]}"


LONG_KEY = "k" * 65
BAD_RESPONSE_ID = "response_id must be in format caresp_<18-char partition key><32-char alphanumeric entropy>"
REFUSED = [
    Refused({"background": True, "store": False}, "unsupported_parameter", "background=true requires store=true",
            "background"),
    Refused({"background": True, "store": False, "stream": True}, "unsupported_parameter",
            "background=true requires store=true", "background"),
    Refused({"stream_options": {}}, "invalid_mode", "stream_options requires stream=true", "stream"),
    Refused({"stream_options": {"include_obfuscation": False}, "stream": False}, "invalid_mode",
            "stream_options requires stream=true", "stream"),
    Refused({"metadata": {str(number): "" for number in range(17)}}, "invalid_request",
            "metadata must have at most 16 key-value pairs", "metadata"),
    Refused({"metadata": {LONG_KEY: "v"}}, "invalid_request",
            f"metadata key '{LONG_KEY[:64]}...' exceeds maximum length of 64 characters", "metadata"),
    Refused({"metadata": {"k": "v" * 513}}, "invalid_request",
            "metadata value for key 'k' exceeds maximum length of 512 characters", "metadata"),
    *(Refused({"previous_response_id": value}, "invalid_parameters", "Malformed identifier.", "previous_response_id")
      for value in ("x", "resp_123", "caresp_short", f"msg_{'0' * 50}", f"caresp_{'0' * 49}", f"caresp_{'0' * 51}")),
    *(Refused({"response_id": value}, "invalid_request", BAD_RESPONSE_ID, "response_id")
      for value in ("x", "resp_123", "caresp_short", f"msg_{'0' * 50}", f"caresp_{'0' * 51}")),
    Refused({"agent_reference": {"type": "agent", "name": "a"}}, "invalid_request",
            "agent_reference.type must be 'agent_reference'", "agent_reference.type"),
    Refused({"agent_reference": {"type": "agent_reference", "name": ""}}, "invalid_request",
            "agent_reference.name must be a non-empty string", "agent_reference.name"),
    Refused({"agent_reference": {"type": "agent_reference", "name": "  "}}, "invalid_request",
            "agent_reference.name must be a non-empty string", "agent_reference.name"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_a_request_that_is_refused(client: Client, case: Refused) -> None:
    error = refused(client.post("/responses", {"input": "say a", **case.body}), case.code, case.param)
    assert error["message"] == case.message


@pytest.mark.parametrize("value", ["x", "resp_123", "caresp_short", f"msg_{'0' * 50}", f"caresp_{'0' * 51}"])
def test_a_response_id_of_the_wrong_shape_in_the_header(client: Client, value: str) -> None:
    answer = client.post("/responses", {"input": "say a"}, {"x-agent-response-id": value})
    error = refused(answer, "invalid_request", "response_id")
    assert error["message"] == BAD_RESPONSE_ID


FULL_METADATA = {f"{number:064}": "v" * 512 for number in range(16)}
LENIENT: dict[str, Mapping[str, Any]] = {
    "an empty body": {},
    "an empty text": {"input": ""},
    "no items": {"input": []},
    "an unknown field": {"input": "say a", "colour": "blue", "nested": {"deep": [1, 2]}},
    "nulls": {"input": "say a", "metadata": None, "temperature": None, "instructions": None, "reasoning": None,
              "previous_response_id": None, "conversation": None, "max_output_tokens": None},
    "no model": {"input": "say a"},
    "an empty model": {"input": "say a", "model": ""},
    "a message without type": {"input": [{"role": "user", "content": "say a"}]},
    "content as text": {"input": [{"type": "message", "role": "user", "content": "say a"}]},
    "content in parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "say a"}]}]},
    "an image without detail": {"input": [{"role": "user", "content": [
        {"type": "input_text", "text": "say a"}, {"type": "input_image", "image_url": "https://example.com/a.png"},
    ]}]},
    "a developer's message": {"input": [{"role": "user", "content": "say a"}, {"role": "developer", "content": "x"}]},
    "a function without strict": {"input": "say a", "tools": [{"type": "function", "name": "f", "parameters": {}}]},
    "a function without parameters": {"input": "say a", "tools": [{"type": "function", "name": "f", "strict": True}]},
    "a bare function": {"input": "say a", "tools": [{"type": "function", "name": "f"}]},
    "a function with nulls": {"input": "say a", "tools": [
        {"type": "function", "name": "f", "parameters": None, "strict": None, "description": None},
    ]},
    "whole numbers as temperature": {"input": "say a", "temperature": 1, "top_p": 1},
    "a conversation by text": {"input": "say a", "conversation": "conv_1"},
    "a conversation by object": {"input": "say a", "conversation": {"id": "conv_1"}},
    "as much metadata as there may be": {"input": "say a", "metadata": FULL_METADATA},
    "empty metadata": {"input": "say a", "metadata": {}},
    "tool choice by text": {"input": "say a", "tool_choice": "auto"},
    "tool choice by name": {"input": "say a", "tool_choice": {"type": "function", "name": "f"}},
    "include": {"input": "say a", "include": ["reasoning.encrypted_content"]},
    "every enumeration": {"input": "say a", "service_tier": "flex", "truncation": "disabled"},
    "a structured format": {"input": "say a", "text": {"format": {
        "type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}, "strict": True,
    }}},
    "a function call's output": {"input": [
        {"role": "user", "content": "say a"}, {"type": "function_call_output", "call_id": "c", "output": "3"},
    ]},
    "an agent reference": {"input": "say a", "agent_reference": {
        "type": "agent_reference", "name": "a", "version": "1",
    }},
    "a session": {"input": "say a", "agent_session_id": "session-1"},
    "a deep field": {"input": "say a", "tools": [{"type": "function", "name": "f", "parameters": {
        "type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": [{"type": "string"}]}}},
    }}]},
}  # fmt: skip


@pytest.mark.parametrize("name", LENIENT)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_request_that_is_taken(client: Client, mode: Mode, name: str) -> None:
    answer = client.post("/responses", {**mode.fields, **LENIENT[name]})
    assert answer.status == 200, answer
    response = answer.events[-1].response if mode.stream else answer.json
    assert response["status"] in ({"queued", "in_progress", "completed"} if mode.background else {"completed"})


def test_flags_that_are_null_are_as_if_absent(client: Client) -> None:
    answer = client.post("/responses", {"input": "say a", "stream": None, "store": None, "background": None})
    assert answer.json["status"] == "completed"
    assert client.get(f"/responses/{answer.json['id']}").status == 200


def test_stream_options_go_with_a_stream(client: Client) -> None:
    body = {"input": "say a", "stream": True, "stream_options": {"include_obfuscation": False}}
    assert client.post("/responses", body).events[-1].kind == "response.completed"


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "text/plain", "x/y", ""]
)
def test_the_content_type_does_not_matter(client: Client, content_type: str) -> None:
    answer = client.post("/responses", {"input": "say a"}, {"content-type": content_type})
    assert answer.status == 200


RESERVED: dict[str, Mapping[str, Any]] = {
    "at the top": {"internal_metadata": {"k": "v"}},
    "in metadata": {"metadata": {"_internal_metadata": "secret", "kept": "yes"}},
}


@pytest.mark.parametrize("place", RESERVED)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_reserved_keys_are_removed(client: Client, mode: Mode, place: str) -> None:
    answer = client.post("/responses", {"input": "say a", **RESERVED[place], **mode.fields})
    assert answer.status == 200
    assert b"internal_metadata" not in answer.body


def test_the_users_own_json_keeps_its_keys(client: Client) -> None:
    """Only at the reserved places is the key removed, not in a schema of the user's (contract section 9, row 13)."""
    schema = {"type": "object", "properties": {"internal_metadata": {"type": "string"}}}
    tools = [{"type": "function", "name": "f", "parameters": schema}]
    answer = client.post("/responses", {"input": "say a", "tools": tools})
    assert answer.json["tools"][0]["parameters"] == schema


def test_a_large_input_is_taken(client: Client) -> None:
    text = "say a\n" + "x" * 5_000_000
    answer = client.post("/responses", {"input": text, "store": False})
    assert answer.status == 200


def test_checks_are_made_before_the_handler_runs(client: Client) -> None:
    """A request that is refused leaves nothing behind."""
    response_id = new_id()
    answer = client.post("/responses", {"input": 1}, {"x-agent-response-id": response_id})
    assert answer.status == 400
    assert client.get(f"/responses/{response_id}").status == 404
