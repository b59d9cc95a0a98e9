"""The shape of a request's fields, as far as a handler relies on it (contract section 4.3)."""

from collections.abc import Iterator, Mapping
from typing import Any

from cupola_agent import ids
from cupola_agent.responses.prefixes import ITEM_PREFIXES

# The fields of a request and the JSON types they may have; null is as good as absent. Others are dropped.
FIELDS: Mapping[str, tuple[str, ...]] = {
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

_ROLES = ("assistant", "critic", "developer", "discriminator", "system", "tool", "unknown", "user")
_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
}
_TOOL_TYPES = frozenset(
    {
        "a2a_preview",
        "apply_patch",
        "azure_ai_search",
        "azure_function",
        "bing_custom_search_preview",
        "bing_grounding",
        "browser_automation_preview",
        "capture_structured_outputs",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "fabric_dataagent_preview",
        "file_search",
        "function",
        "image_generation",
        "local_shell",
        "mcp",
        "memory_search",
        "memory_search_preview",
        "namespace",
        "openapi",
        "programmatic_tool_calling",
        "sharepoint_grounding_preview",
        "shell",
        "tool_search",
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "web_search_preview_2025_03_11",
        "work_iq_preview",
    }
)
_ITEM_TYPES = frozenset(ITEM_PREFIXES) | {"item_reference"}


def problems(request: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for name, value in request.items():
        path = f"$.{name}"
        wrong = _wrong_type(value, *FIELDS[name])
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
    tools = request.get("tools")
    if isinstance(tools, list):
        for index, tool in enumerate(tools):
            yield from _tool_problems(tool, f"$.tools[{index}]")
    items = request.get("input")
    if isinstance(items, list):
        for index, item in enumerate(items):
            yield from _item_problems(item, f"$.input[{index}]")


def _tool_problems(tool: Any, path: str) -> Iterator[dict[str, str]]:
    wrong = _wrong_type(tool, "object")
    if wrong:
        yield _problem(path, wrong)
        return
    yield from _string_problem(tool, "type", path)
    kind = tool.get("type")
    if isinstance(kind, str) and kind not in _TOOL_TYPES:
        yield _problem(f"{path}.type", f"Invalid discriminator '{kind}'. Allowed: {', '.join(sorted(_TOOL_TYPES))}")
    if kind == "function":
        yield from _string_problem(tool, "name", path)


def _item_problems(item: Any, path: str) -> Iterator[dict[str, str]]:
    wrong = _wrong_type(item, "object")
    if wrong:
        yield _problem(path, wrong)
        return
    wrong = _wrong_type(item.get("type", "message"), "string")
    if wrong:
        yield _problem(f"{path}.type", wrong)
        return
    if item.get("id") is not None:
        yield from _string_problem(item, "id", path)
    kind = item.get("type", "message")
    if kind == "item_reference" and item.get("id") is None:
        yield from _string_problem(item, "id", path)
    elif kind not in ITEM_PREFIXES:
        yield _problem(f"{path}.type", f"Invalid discriminator '{kind}'. Allowed: {', '.join(sorted(_ITEM_TYPES))}")
    for name in _REQUIRED.get(kind, ()):
        if name not in item:
            yield _problem(f"{path}.{name}", f"Required property '{name}' is missing")
    if kind != "message":
        return
    yield from _string_problem(item, "role", path)
    role = item.get("role")
    if isinstance(role, str) and role not in _ROLES:
        yield _problem(f"{path}.role", f"Invalid value '{role}'. Allowed: {', '.join(_ROLES)}")
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
