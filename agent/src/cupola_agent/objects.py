"""The response object and its output items (contract section 4.4).

Every field that OpenAI's object has is present, null where nothing is known: clients that check the whole
shape then accept the answer, and those that do not see the same values as from the reference.
"""

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

_DEFAULT_REFERENCE = {"type": "agent_reference", "name": "server-default-agent"}

# Fields that repeat what the request said, with what they are when it said nothing.
_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": "",
    "parallel_tool_calls": False,
    "previous_response_id": None,
    "prompt": None,
    "prompt_cache_key": None,
    "prompt_cache_retention": None,
    "reasoning": None,
    "safety_identifier": None,
    "service_tier": "default",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def new_response(request: Mapping[str, Any], *, response_id: str, session_id: str, created_at: int) -> Json:
    """The response object as it is when the handler starts. `created_at` is in seconds of the Unix epoch."""
    echoed = {name: default if (value := request.get(name)) is None else value for name, default in _ECHOED.items()}
    conversation = request.get("conversation")
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        **echoed,
        "background": bool(request.get("background")),
        "conversation": {"id": conversation} if isinstance(conversation, str) else conversation,
        "store": request.get("store") is not False,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "output": [],
        "usage": None,
        "response_id": response_id,
        "agent_reference": request.get("agent_reference") or _DEFAULT_REFERENCE,
        "agent_session_id": session_id,
    }


def output_text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def output_message(
    item_id: str, status: str, content: list[Json], response_id: str, agent_reference: Json | None
) -> Json:
    return {
        "id": item_id,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
        "response_id": response_id,
        "agent_reference": agent_reference,
    }
