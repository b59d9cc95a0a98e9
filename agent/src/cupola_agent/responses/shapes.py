"""Items as they go over the wire: whole, and as they are when they are added (contract sections 4.2 and 4.5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from cupola_agent import items, jsons
from cupola_agent.responses.output import Json, Output, OutputError
from cupola_agent.responses.prefixes import ITEM_PREFIXES

_WITHOUT_STATUS = frozenset(
    {
        "additional_tools",
        "compaction",
        "compaction_summary",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "oauth_consent_request",
        "program",
        "structured_outputs",
    }
)
# The status of these says how something went that is over.
_ENDED_WHEN_ADDED = frozenset({"apply_patch_call_output", "program_output", "workflow_action"})

_WITH_CALL_ID = frozenset(
    {"apply_patch_call", "computer_call", "custom_tool_call", "function_call", "local_shell_call", "shell_call"}
)
_WITH_ARGUMENTS = frozenset({"function_call", "mcp_approval_request", "mcp_call"})

_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "custom_tool_call": ("name",),
    "function_call": ("name",),
    "mcp_call": ("server_label", "name"),
}

# What callers look for even where a handler had nothing to say.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "code_interpreter_call": {"code": "", "outputs": None},
    "computer_call": {"pending_safety_checks": []},
    "custom_tool_call": {"input": ""},
    "file_search_call": {"queries": [], "results": None},
    "image_generation_call": {"result": None},
    "mcp_list_tools": {"tools": []},
    "message": {"role": "assistant"},
}

# What an item does not have yet when it is added: fields by what stands there instead.
_ABSENT = object()
_LATER: Mapping[str, Mapping[str, object]] = {
    "code_interpreter_call": {"code": "", "outputs": None},
    "custom_tool_call": {"input": ""},
    "file_search_call": {"queries": [], "results": None},
    "function_call": {"arguments": ""},
    "image_generation_call": {"result": None, "revised_prompt": _ABSENT},
    "mcp_call": {"arguments": "", "output": _ABSENT, "error": _ABSENT},
    "mcp_list_tools": {"tools": [], "error": _ABSENT},
    "message": {"content": []},
    "reasoning": {"summary": [], "content": _ABSENT, "encrypted_content": _ABSENT},
}


def whole_item(given: items.Item | Mapping[str, Any], output: Output) -> Json:
    """The item in its last state, with its id. Raises OutputError for what is no item."""
    item = _fields(given)
    kind = item.get("type")
    if not isinstance(kind, str) or not kind:
        raise OutputError(f"an item has a type, which is text: {kind!r}")
    for name in _REQUIRED.get(kind, ()):
        if not isinstance(item.get(name), str):
            raise OutputError(f"a {kind} has a {name}, which is text: {item.get(name)!r}")
    prefix = ITEM_PREFIXES.get(kind)
    if prefix is not None:
        item_id = item.pop("id", None) or output.new_item_id(prefix)
        item = {"id": item_id, "type": kind, **_DEFAULTS.get(kind, {}), **item}
        if kind not in _WITHOUT_STATUS and item.get("status") in (None, "in_progress"):
            item["status"] = "completed"
    if kind in _WITH_CALL_ID and not item.get("call_id"):
        item["call_id"] = output.new_item_id("call")
    if kind in _WITH_ARGUMENTS:
        item["arguments"] = _arguments(item.get("arguments"))
    complete = _COMPLETED.get(kind)
    if complete is not None:
        complete(item)
    return item


def added_item(item: Json) -> Json:
    """The item as it is when it is added."""
    kind = item["type"]
    added = dict(item)
    if "status" in added and kind in ITEM_PREFIXES and kind not in _ENDED_WHEN_ADDED:
        added["status"] = "in_progress"
    if kind == "message" and item["role"] != "assistant":
        return added
    for name, value in _LATER.get(kind, {}).items():
        added.pop(name, None)
        if value is not _ABSENT:
            added[name] = value
    return added


def output_text(text: str, annotations: Sequence[Any] = (), logprobs: Sequence[Any] = ()) -> Json:
    return {"type": "output_text", "text": text, "annotations": list(annotations), "logprobs": list(logprobs)}


def refusal(text: str) -> Json:
    return {"type": "refusal", "refusal": text}


def builtins(value: Any) -> Any:
    """The value without structs. Raises OutputError for what is not JSON."""
    try:
        return msgspec.to_builtins(value)
    except (TypeError, ValueError) as error:
        raise OutputError(f"not JSON: {error}") from error


def _fields(given: items.Item | Mapping[str, Any]) -> Json:
    if isinstance(given, items.Refusal):
        given = items.Message(refusal=given.text, id=given.id, internal_metadata=given.internal_metadata)
    if isinstance(given, items.Item):
        fields = {name: value for name, value in builtins(given).items() if value is not None}
        if isinstance(given, items.Message):
            _take_content(fields)
        return fields
    if isinstance(given, Mapping):
        return dict(given)
    raise OutputError(f"an item is one of cupola_agent.items or a mapping, not {type(given).__name__}")


def _take_content(fields: Json) -> None:
    """Of a struct: its text, annotations and refusal become the content of the message."""
    text, annotations, refused = fields.pop("text"), fields.pop("annotations"), fields.pop("refusal", None)
    content = [] if refused is not None and not text else [output_text(text, annotations)]
    if refused is not None:
        content.append(refusal(refused))
    fields["content"] = content


def _arguments(given: Any) -> str:
    if given is None:
        return "{}"
    if isinstance(given, str):
        return given
    try:
        return jsons.encode(given).decode()
    except (TypeError, ValueError) as error:
        raise OutputError(f"arguments are not JSON: {error}") from error


def _complete_message(item: Json) -> None:
    content = item.get("content")
    if isinstance(content, str):
        content = [output_text(content)]
    item["content"] = [_complete_part(part) for part in content or ()]


def _complete_part(part: Any) -> Json:
    if not isinstance(part, Mapping):
        raise OutputError(f"a part of a message is a mapping, not {type(part).__name__}")
    if part.get("type") == "output_text":
        return {"annotations": [], "logprobs": [], **part}
    return dict(part)


def _complete_reasoning(item: Json) -> None:
    item["summary"] = _texts(item.get("summary"), "summary_text")
    content = _texts(item.pop("content", None), "reasoning_text")
    if content:
        item["content"] = content


def _texts(given: Any, kind: str) -> list[Json]:
    parts = [given] if isinstance(given, str) else list(given or ())
    return [{"type": kind, "text": part} if isinstance(part, str) else dict(part) for part in parts]


def _complete_web_search(item: Json) -> None:
    action = item.get("action")
    if isinstance(action, str):
        item["action"] = {"type": "search", "query": action, "queries": [action]}


def _complete_mcp_call(item: Json) -> None:
    if item.get("error") is not None:
        item["status"] = "failed"


_COMPLETED = {
    "mcp_call": _complete_mcp_call,
    "message": _complete_message,
    "reasoning": _complete_reasoning,
    "web_search_call": _complete_web_search,
}
