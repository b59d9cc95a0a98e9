"""The response object and its output items (contract section 4.4).

Every field that OpenAI's object has is present, null where nothing is known: clients that check the whole
shape then accept the answer, and those that do not see the same values as from the reference.
"""

from collections.abc import Callable, Mapping
from typing import Any

Json = dict[str, Any]

# What the object says where the request said nothing.
_USUAL: Mapping[str, Any] = {
    "id": "",
    "object": "response",
    "created_at": 0,
    "completed_at": None,
    "status": "in_progress",
    "error": None,
    "incomplete_details": None,
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
    "background": False,
    "conversation": None,
    "store": True,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "output": [],
    "usage": None,
    "response_id": "",
    "agent_reference": {"type": "agent_reference", "name": "server-default-agent"},
    "agent_session_id": "",
}
_NOT_ECHOED = {"response_id", "agent_session_id", "conversation", "output", "status"}
_ECHOED = frozenset(_USUAL) - _NOT_ECHOED


_JSON_SCHEMA = {"type": "json_schema", "name": "", "description": None, "schema": None, "strict": False}
_FUNCTION = {"type": "function", "name": "", "description": None, "parameters": None, "strict": None}


def new_response(request: Mapping[str, Any], *, response_id: str, session_id: str, created_at: int) -> Json:
    """The response object as it is when the handler starts. `created_at` is in seconds of the Unix epoch."""
    response = {
        **_USUAL,
        "id": response_id,
        "created_at": created_at,
        "response_id": response_id,
        "agent_session_id": session_id,
    }
    response |= {name: value for name, value in request.items() if name in _ECHOED}
    for name, whole in _WHOLE.items():
        if name in request:
            response[name] = whole(request[name])
    conversation = request.get("conversation")
    if conversation is not None:
        response["conversation"] = {"id": conversation} if isinstance(conversation, str) else conversation
    return response


def _whole_tools(tools: list[Json]) -> list[Json]:
    return [{**_FUNCTION, **tool} if tool.get("type") == "function" else tool for tool in tools]


def _whole_text(text: Json) -> Json:
    form = text.get("format") or {"type": "text"}
    return {**text, "format": {**_JSON_SCHEMA, **form} if form.get("type") == "json_schema" else form}


def _whole_reasoning(reasoning: Json) -> Json:
    return {"effort": None, "summary": None, **reasoning}


# Fields that have more in a response than a request has to say.
_WHOLE: Mapping[str, Callable[[Any], Any]] = {
    "tools": _whole_tools,
    "text": _whole_text,
    "reasoning": _whole_reasoning,
}


class ResponseRequest(dict[str, Any]):
    """The body of the request with its known fields, as a dict and by attribute; one that is absent is None."""

    @property
    def model(self) -> str:
        return str(self.get("model") or "")

    @property
    def instructions(self) -> Any:
        return self.get("instructions")

    @property
    def input(self) -> Any:
        """As it was sent: a text, or a list of items."""
        return self.get("input")

    @property
    def tools(self) -> list[Json]:
        return list(self.get("tools") or ())

    @property
    def tool_choice(self) -> Any:
        return self.get("tool_choice")

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.get("metadata") or {})

    @property
    def stream(self) -> bool:
        return bool(self.get("stream"))

    @property
    def background(self) -> bool:
        return bool(self.get("background"))

    @property
    def store(self) -> bool:
        return self.get("store") is not False

    @property
    def temperature(self) -> float | None:
        return self.get("temperature")

    @property
    def top_p(self) -> float | None:
        return self.get("top_p")

    @property
    def max_output_tokens(self) -> int | None:
        return self.get("max_output_tokens")

    @property
    def reasoning(self) -> Json | None:
        return self.get("reasoning")

    @property
    def text(self) -> Json | None:
        return self.get("text")

    @property
    def user(self) -> str | None:
        return self.get("user")


def public(response: Mapping[str, Any]) -> Json:
    """A stored response as clients may see it: without what the handler noted for itself (contract section 4.3)."""
    shown = dict(response)
    shown["output"] = [public_item(item) for item in response.get("output") or ()]
    metadata = response.get("metadata")
    if isinstance(metadata, Mapping) and "_internal_metadata" in metadata:
        shown["metadata"] = {name: value for name, value in metadata.items() if name != "_internal_metadata"}
    return shown


def public_item(item: Json) -> Json:
    if "internal_metadata" not in item:
        return item
    return {name: value for name, value in item.items() if name != "internal_metadata"}
