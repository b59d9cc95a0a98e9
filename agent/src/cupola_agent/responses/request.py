"""Reads and checks the body of `POST /responses`, in the order of contract section 4.3."""

from collections.abc import Iterator, Mapping
from typing import Any

from cupola_agent import ids, jsons
from cupola_agent.errors import ApiError, invalid_request

# The fields of a request and the JSON types they may have; null is as good as absent. Others are dropped.
_TYPES: Mapping[str, tuple[str, ...]] = {
    "agent_reference": ("object",),
    "agent_session_id": ("string",),
    "background": ("boolean",),
    "context_management": ("array",),
    "conversation": ("string", "object"),
    "include": ("array",),
    "input": ("string", "array"),
    "instructions": ("string", "array"),
    "max_output_tokens": ("integer",),
    "max_tool_calls": ("integer",),
    "metadata": ("object",),
    "model": ("string",),
    "moderation": ("object",),
    "parallel_tool_calls": ("boolean",),
    "previous_response_id": ("string",),
    "prompt": ("object",),
    "prompt_cache_key": ("string",),
    "prompt_cache_options": ("object",),
    "prompt_cache_retention": ("string",),
    "reasoning": ("object",),
    "response_id": ("string",),
    "safety_identifier": ("string",),
    "service_tier": ("string",),
    "store": ("boolean",),
    "stream": ("boolean",),
    "stream_options": ("object",),
    "structured_inputs": ("object",),
    "temperature": ("number",),
    "text": ("object",),
    "tool_choice": ("string", "object"),
    "tools": ("array",),
    "top_logprobs": ("integer",),
    "top_p": ("number",),
    "truncation": ("string",),
    "user": ("string",),
}

_VALUES: Mapping[str, tuple[str, ...]] = {
    "service_tier": ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast"),
    "truncation": ("auto", "disabled"),
}

_MAX_METADATA = 16
_MAX_KEY = 64
_MAX_VALUE = 512


def parse_request(body: bytes) -> dict[str, Any]:
    """The known fields of the request that are not null. Raises ApiError (400)."""
    try:
        given = jsons.decode(body)
    except ValueError as error:
        raise invalid_request(str(error), code="invalid_request_error") from error
    return check_request(given)


def check_request(given: Any) -> dict[str, Any]:
    """Like `parse_request`, for a body that is decoded already."""
    if not isinstance(given, dict):
        raise invalid_request("request body must be a JSON object")
    request = {name: value for name, value in given.items() if value is not None and name in _TYPES}
    problems = sorted(_problems(request), key=lambda problem: problem["param"])
    if problems:
        raise ApiError(400, "invalid_request", "request body failed schema validation", details=problems)
    _check_mode(request)
    _check_metadata(request.get("metadata", {}))
    previous = request.get("previous_response_id")
    if previous is not None and not ids.is_response_id(previous):
        raise invalid_request("Malformed identifier.", "previous_response_id", "invalid_parameters")
    _check_agent_reference(request.get("agent_reference"))
    return request


def checked_response_id(response_id: str) -> str:
    """Raises ApiError (400) when an id chosen by the platform has another shape than ours."""
    if not ids.is_response_id(response_id) or ids.partition_of(response_id) is None:
        shape = "caresp_<18-char partition key><32-char alphanumeric entropy>"
        raise invalid_request(f"response_id must be in format {shape}", "response_id")
    return response_id


def _problems(request: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for name, value in request.items():
        path = f"$.{name}"
        wrong = _wrong_type(value, *_TYPES[name])
        if wrong:
            yield _problem(path, wrong)
        elif name in _VALUES and value not in _VALUES[name]:
            yield _problem(path, f"Invalid value '{value}'. Allowed: {', '.join(_VALUES[name])}")
    session_id = request.get("agent_session_id")
    if isinstance(session_id, str) and session_id and not ids.is_safe_id(session_id):
        # It is echoed in a header.
        yield _problem("$.agent_session_id", "Allowed: 1 to 256 of A-Z, a-z, 0-9 and _.:-")
    conversation = request.get("conversation")
    if isinstance(conversation, dict):
        yield from _string_problem(conversation, "id", "$.conversation")
    items = request.get("input")
    if isinstance(items, list):
        for index, item in enumerate(items):
            yield from _item_problems(item, f"$.input[{index}]")


def _item_problems(item: Any, path: str) -> Iterator[dict[str, str]]:
    wrong = _wrong_type(item, "object")
    if wrong:
        yield _problem(path, wrong)
        return
    wrong = _wrong_type(item.get("type", "message"), "string")
    if wrong:
        yield _problem(f"{path}.type", wrong)
    if item.get("type", "message") != "message":
        return
    yield from _string_problem(item, "role", path)
    if "content" not in item:
        yield _problem(f"{path}.content", "Required property 'content' is missing")
        return
    content = item["content"]
    wrong = _wrong_type(content, "string", "array")
    if wrong:
        yield _problem(f"{path}.content", wrong)
    elif isinstance(content, list):
        for index, part in enumerate(content):
            wrong = _wrong_type(part, "object")
            if wrong:
                yield _problem(f"{path}.content[{index}]", wrong)
                continue
            yield from _string_problem(part, "type", f"{path}.content[{index}]")
            if part.get("type") == "input_text":
                yield from _string_problem(part, "text", f"{path}.content[{index}]")


def _string_problem(owner: Mapping[str, Any], name: str, path: str) -> Iterator[dict[str, str]]:
    if name not in owner:
        yield _problem(f"{path}.{name}", f"Required property '{name}' is missing")
    elif wrong := _wrong_type(owner[name], "string"):
        yield _problem(f"{path}.{name}", wrong)


def _problem(path: str, message: str) -> dict[str, str]:
    return {"code": "invalid_value", "message": message, "param": path, "type": "invalid_request_error"}


def _wrong_type(value: Any, *allowed: str) -> str:
    actual = _json_type(value)
    if actual in allowed or (actual == "integer" and "number" in allowed):
        return ""
    expected = allowed[0] if len(allowed) == 1 else f"one of: {', '.join(allowed)}"
    return f"Expected {expected}{',' if len(allowed) == 1 else ';'} got {actual}"


def _json_type(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _check_mode(request: Mapping[str, Any]) -> None:
    if request.get("background") and request.get("store") is False:
        raise invalid_request("background=true requires store=true", "background", "unsupported_parameter")
    if "stream_options" in request and not request.get("stream"):
        raise invalid_request("stream_options requires stream=true", "stream", "invalid_mode")


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if len(metadata) > _MAX_METADATA:
        raise invalid_request(f"metadata must have at most {_MAX_METADATA} key-value pairs", "metadata")
    for key, value in metadata.items():
        if len(key) > _MAX_KEY:
            raise invalid_request(
                f"metadata key '{key[:_MAX_KEY]}...' exceeds maximum length of {_MAX_KEY} characters",
                "metadata",
            )
        if not isinstance(value, str):
            raise invalid_request(f"metadata value for key '{key}' must be a string", "metadata")
        if len(value) > _MAX_VALUE:
            raise invalid_request(
                f"metadata value for key '{key}' exceeds maximum length of {_MAX_VALUE} characters",
                "metadata",
            )


def _check_agent_reference(reference: Mapping[str, Any] | None) -> None:
    if reference is None:
        return
    if reference.get("type", "agent_reference") != "agent_reference":
        raise invalid_request("agent_reference.type must be 'agent_reference'", "agent_reference.type")
    name = reference.get("name")
    if not isinstance(name, str) or not name:
        raise invalid_request("agent_reference.name must be a non-empty string", "agent_reference.name")
