"""The objects and events of the Open Responses specification of 2026-04-24, and a check of values against them.

A shape is written as a value: a type; a text or a number that must be exactly this; None; a list of the shape of its
elements; a dict of the shapes of its fields, where a name that ends in `?` may be absent; `either(…)` of several shapes;
`ANY`. Fields that no shape names are allowed, as in the specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Shape = Any
ANY = object()


@dataclass(frozen=True)
class Either:
    """One of several shapes."""

    shapes: tuple[Shape, ...]


def either(*shapes: Shape) -> Either:
    return Either(shapes)


def faults(value: Any, shape: Shape, path: str = "$") -> list[str]:
    """What is wrong with the value, each fault with its place; empty when it has the shape."""
    return list(_faults(value, shape, path))


def _faults(value: Any, shape: Shape, path: str) -> Iterator[str]:
    if shape is ANY:
        return
    if isinstance(shape, Either):
        attempts = [faults(value, one, path) for one in shape.shapes]
        if not any(attempt == [] for attempt in attempts):
            # The attempt of the right type says most, and of those the one that lacks least.
            yield from min(attempts, key=lambda attempt: (f"{path}.type:" in " ".join(attempt), len(attempt)))
    elif isinstance(shape, dict):
        if not isinstance(value, Mapping):
            yield f"{path}: not an object but {value!r:.80}"
            return
        for name, field in shape.items():
            field_name = name.removesuffix("?")
            if field_name in value:
                yield from _faults(value[field_name], field, f"{path}.{field_name}")
            elif not name.endswith("?"):
                yield f"{path}.{field_name}: missing"
    elif isinstance(shape, list):
        if not isinstance(value, list):
            yield f"{path}: not an array but {value!r:.80}"
            return
        for index, element in enumerate(value):
            yield from _faults(element, shape[0], f"{path}.{index}")
    elif isinstance(shape, type):
        wanted = (int, float) if shape is float else shape
        if not isinstance(value, wanted) or (isinstance(value, bool) and shape is not bool):
            yield f"{path}: not {shape.__name__} but {value!r:.80}"
    elif value != shape or type(value) is not type(shape):
        yield f"{path}: not {shape!r} but {value!r:.80}"


ITEM_STATUS = either("in_progress", "completed", "incomplete")
TEXT_OR_NULL = either(str, None)
COUNT_OR_NULL = either(int, None)
LOG_PROBABILITY = {
    "token": str,
    "logprob": float,
    "bytes": [int],
    "top_logprobs": [{"token": str, "logprob": float, "bytes": [int]}],
}
ANNOTATION = {"type": "url_citation", "url": str, "start_index": int, "end_index": int, "title": str}
IMAGE = {"type": "input_image", "image_url": TEXT_OR_NULL, "detail": either("low", "high", "auto")}
FILE = {"type": "input_file", "filename?": str, "file_url?": str}
CONTENT = either(
    {"type": "input_text", "text": str},
    {"type": "output_text", "text": str, "annotations": [ANNOTATION], "logprobs?": [LOG_PROBABILITY]},
    {"type": "text", "text": str},
    {"type": "summary_text", "text": str},
    {"type": "reasoning_text", "text": str},
    {"type": "refusal", "refusal": str},
    IMAGE,
    FILE,
    {"type": "input_video", "video_url": str},
)
MESSAGE = {
    "type": "message",
    "id": str,
    "status": ITEM_STATUS,
    "role": either("user", "assistant", "system", "developer"),
    "content": [CONTENT],
    "phase?": either("commentary", "final_answer"),
}
ITEM = either(
    MESSAGE,
    {"type": "function_call", "id": str, "call_id": str, "name": str, "arguments": str, "status": ITEM_STATUS},
    {
        "type": "function_call_output",
        "id": str,
        "call_id": str,
        "output": either(str, [either({"type": "input_text", "text": str}, IMAGE, FILE)]),
        "status": ITEM_STATUS,
    },
    {"type": "reasoning", "id": str, "summary": [CONTENT], "content?": [CONTENT], "encrypted_content?": str},
    {"type": "compaction", "id": str, "encrypted_content": str, "created_by?": str},
)
TOOL = {
    "type": "function",
    "name": str,
    "description": TEXT_OR_NULL,
    "parameters": either({}, None),
    "strict": either(bool, None),
}
TOOL_MODE = either("none", "auto", "required")
USAGE = {
    "input_tokens": int,
    "output_tokens": int,
    "total_tokens": int,
    "input_tokens_details": {"cached_tokens": int},
    "output_tokens_details": {"reasoning_tokens": int},
}
RESPONSE = {
    "id": str,
    "object": "response",
    "created_at": int,
    "completed_at": COUNT_OR_NULL,
    "status": str,
    "incomplete_details": either({"reason": str}, None),
    "model": str,
    "previous_response_id": TEXT_OR_NULL,
    "instructions": TEXT_OR_NULL,
    "output": [ITEM],
    "error": either({"code": str, "message": str}, None),
    "tools": [TOOL],
    "tool_choice": either(
        {"type": "function", "name?": str},
        TOOL_MODE,
        {"type": "allowed_tools", "tools": [{"type": "function", "name?": str}], "mode": TOOL_MODE},
    ),
    "truncation": either("auto", "disabled"),
    "parallel_tool_calls": bool,
    "text": {
        "format": either(
            {"type": "text"},
            {"type": "json_object"},
            {"type": "json_schema", "name": str, "description": TEXT_OR_NULL, "schema": ANY, "strict": bool},
        ),
        "verbosity?": either("low", "medium", "high"),
    },
    "top_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "top_logprobs": int,
    "temperature": float,
    "reasoning": either(
        {
            "effort": either("none", "low", "medium", "high", "xhigh", None),
            "summary": either("concise", "detailed", "auto", None),
        },
        None,
    ),
    "usage": either(USAGE, None),
    "max_output_tokens": COUNT_OR_NULL,
    "max_tool_calls": COUNT_OR_NULL,
    "store": bool,
    "background": bool,
    "service_tier": str,
    "metadata": {},
    "safety_identifier": TEXT_OR_NULL,
    "prompt_cache_key": TEXT_OR_NULL,
}
COMPACTION = {"id": str, "object": "response.compaction", "output": [ITEM], "created_at": int, "usage": USAGE}

_ITEM_PLACE = {"item_id": str, "output_index": int}
_CONTENT_PLACE = {**_ITEM_PLACE, "content_index": int}
_SUMMARY_PLACE = {**_ITEM_PLACE, "summary_index": int}
_LIFECYCLE = {"response": RESPONSE}
_FIELDS: Mapping[str, dict[str, Shape]] = {
    "response.created": _LIFECYCLE,
    "response.queued": _LIFECYCLE,
    "response.in_progress": _LIFECYCLE,
    "response.completed": _LIFECYCLE,
    "response.failed": _LIFECYCLE,
    "response.incomplete": _LIFECYCLE,
    "response.output_item.added": {"output_index": int, "item": either(ITEM, None)},
    "response.output_item.done": {"output_index": int, "item": either(ITEM, None)},
    "response.content_part.added": {**_CONTENT_PLACE, "part": CONTENT},
    "response.content_part.done": {**_CONTENT_PLACE, "part": CONTENT},
    "response.output_text.delta": {**_CONTENT_PLACE, "delta": str, "logprobs?": [LOG_PROBABILITY]},
    "response.output_text.done": {**_CONTENT_PLACE, "text": str, "logprobs?": [LOG_PROBABILITY]},
    "response.output_text.annotation.added": {
        **_CONTENT_PLACE, "annotation_index": int, "annotation": either(ANNOTATION, None),
    },
    "response.refusal.delta": {**_CONTENT_PLACE, "delta": str},
    "response.refusal.done": {**_CONTENT_PLACE, "refusal": str},
    "response.function_call_arguments.delta": {**_ITEM_PLACE, "delta": str},
    "response.function_call_arguments.done": {**_ITEM_PLACE, "arguments": str},
    "response.reasoning.delta": {**_CONTENT_PLACE, "delta": str},
    "response.reasoning.done": {**_CONTENT_PLACE, "text": str},
    "response.reasoning_summary_part.added": {**_SUMMARY_PLACE, "part": CONTENT},
    "response.reasoning_summary_part.done": {**_SUMMARY_PLACE, "part": CONTENT},
    "response.reasoning_summary_text.delta": {**_SUMMARY_PLACE, "delta": str},
    "response.reasoning_summary_text.done": {**_SUMMARY_PLACE, "text": str},
    "error": {"error": {"type": str, "code": TEXT_OR_NULL, "message": str, "param": TEXT_OR_NULL}},
}  # fmt: skip
EVENTS: Mapping[str, Shape] = {
    kind: {"type": kind, "sequence_number": int, **fields} for kind, fields in _FIELDS.items()
}
SOCKET_ERROR = {
    "type": "error",
    "status": int,
    "error": {"type?": str, "code": str, "message": str, "param?": TEXT_OR_NULL},
}


def event_faults(event: Any) -> list[str]:
    """What is wrong with an event of a stream."""
    kind = event.get("type")
    if kind not in EVENTS:
        return [f"$.type: no event of the specification is named {kind!r}"]
    return faults(event, EVENTS[kind], f"${kind}")
