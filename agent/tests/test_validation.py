from typing import Any

import pytest
from cupola_agent import Agent
from cupola_agent.stores.memory import MemoryResponseStore
from cupola_agent.testing import TestClient


def client() -> TestClient:
    agent = Agent(environ={}, store=MemoryResponseStore)
    agent.responses(lambda: "fine")
    return TestClient(agent)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"temperature":NaN}', b'{"top_p":1e999}', b"[" * 100_000])
async def test_a_body_that_is_not_json(body: bytes) -> None:
    answer = await client().post("/responses", content=body)
    assert answer.status == 400
    assert answer.headers["x-platform-error-source"] == "user"
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (
        "invalid_request_error",
        "invalid_request_error",
        None,
    )
    assert error["message"]
    assert error["additionalInfo"] == {"request_id": answer.headers["x-request-id"]}


@pytest.mark.parametrize(
    ("body", "code", "message", "param"),
    [
        ([], "invalid_request", "request body must be a JSON object", None),
        (
            {"background": True, "store": False},
            "unsupported_parameter", "background=true requires store=true", "background",
        ),
        ({"stream_options": {}}, "invalid_mode", "stream_options requires stream=true", "stream"),
        (
            {"metadata": {str(number): "" for number in range(17)}},
            "invalid_request", "metadata must have at most 16 key-value pairs", "metadata",
        ),
        (
            {"metadata": {"k" * 65: ""}},
            "invalid_request", f"metadata key '{'k' * 64}...' exceeds maximum length of 64 characters",
            "metadata",
        ),
        (
            {"metadata": {"k": "v" * 513}},
            "invalid_request", "metadata value for key 'k' exceeds maximum length of 512 characters",
            "metadata",
        ),
        (
            {"metadata": {"k": 1}},
            "invalid_request", "metadata value for key 'k' must be a string", "metadata",
        ),
        (
            {"previous_response_id": "resp_1"},
            "invalid_parameters", "Malformed identifier.", "previous_response_id",
        ),
        (
            {"response_id": "caresp_short"},
            "invalid_request",
            "response_id must be in format caresp_<18-char partition key><32-char alphanumeric entropy>",
            "response_id",
        ),
        (
            {"agent_reference": {"type": "agent", "name": "a"}},
            "invalid_request", "agent_reference.type must be 'agent_reference'", "agent_reference.type",
        ),
        (
            {"agent_reference": {"type": "agent_reference", "name": ""}},
            "invalid_request", "agent_reference.name must be a non-empty string", "agent_reference.name",
        ),
    ],
)  # fmt: skip
async def test_a_request_that_is_refused(body: Any, code: str, message: str, param: str | None) -> None:
    answer = await client().post("/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["message"], error["param"]) == (400, code, message, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "path", "message"),
    [
        ({"model": 1}, "$.model", "Expected string, got integer"),
        ({"input": 1}, "$.input", "Expected one of: string, array; got integer"),
        ({"temperature": True}, "$.temperature", "Expected number, got boolean"),
        ({"truncation": "x"}, "$.truncation", "Invalid value 'x'. Allowed: auto, disabled"),
        ({"input": ["x"]}, "$.input[0]", "Expected object, got string"),
        ({"input": [{"content": "x"}]}, "$.input[0].role", "Required property 'role' is missing"),
        ({"input": [{"role": "user"}]}, "$.input[0].content", "Required property 'content' is missing"),
        ({"input": [{"role": "user", "content": 1.5}]}, "$.input[0].content", "got number"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
            "$.input[0].content[0].text", "Required property 'text' is missing",
        ),
        ({"conversation": {}}, "$.conversation.id", "Required property 'id' is missing"),
        ({"agent_session_id": "a\r\nx: y"}, "$.agent_session_id", "Allowed"),
    ],
)  # fmt: skip
async def test_a_schema_violation_is_pointed_out(body: Any, path: str, message: str) -> None:
    answer = await client().post("/responses", json=body)
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (400, "invalid_request")
    assert error["message"] == "request body failed schema validation"
    [detail] = error["details"]
    assert (detail["code"], detail["param"]) == ("invalid_value", path)
    assert message in detail["message"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"unknown": 1, "tools": [{"type": "function", "name": "f"}]},
        {"input": None, "metadata": None, "temperature": 1},
        {"stream_options": {}, "stream": True},
    ],
)
async def test_what_openai_clients_send_is_accepted(body: Any) -> None:
    assert (await client().post("/responses", json=body)).status == 200
