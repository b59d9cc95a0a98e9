"""Agents of the Microsoft Agent Framework as handlers of responses. An extra: `cupola-agent[agent-framework]`.

agent.responses(handler(agent_framework.Agent(client, "instructions", tools=[…])))
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from cupola_agent import items, jsons
from cupola_agent.adapters.conversation import (
    Called,
    Conversation,
    Media,
    Returned,
    Said,
    instructions_of,
    model_of,
    noted,
    sampling,
)
from cupola_agent.context import ResponseContext
from cupola_agent.responses.objects import ResponseRequest

Json = dict[str, Any]
Piece = str | items.Item | items.Usage


_USAGE = (
    "input_token_count",
    "output_token_count",
    "cache_read_input_token_count",
    "reasoning_output_token_count",
)


class AgentFailed(Exception):
    """The agent told of an error in place of an answer."""


def handler(agent: Any, *, models: Sequence[str] = ()) -> Callable[..., AsyncIterator[Piece]]:
    """Gives a handler that runs `agent`, an `agent_framework.Agent`, with the conversation so far.

    The request's instructions come after the agent's own; its temperature, top_p and max_output_tokens are those of
    the run, and its model where `models` names it. A tool whose approval mode asks for it becomes an
    `mcp_approval_request`: it runs when its response comes.
    """

    async def reply(request: ResponseRequest, context: ResponseContext, history: list[Json]) -> AsyncIterator[Piece]:
        from agent_framework import AgentSession

        conversation = Conversation.of(history, context.input_items)
        pieces = _Pieces(agent.name or "agent")
        waiting = noted(history, "session") if conversation.decisions else None
        if waiting is None:
            session = agent.create_session(session_id=context.chain_id)
            messages = _messages(conversation)
        else:
            # The session has the conversation and the calls that wait, which nothing else can approve.
            session = AgentSession.from_dict(waiting)
            messages = [_decided(conversation, noted(history, "requests"))]
            for entry in conversation.entries:
                if isinstance(entry, Called) and entry.call_id in conversation.decisions:
                    yield items.FunctionCall(entry.name, entry.arguments, call_id=entry.call_id)
        options = _options(request, models)
        async with agent.run(messages, stream=True, session=session, options=options) as updates:
            async for update in updates:
                for content in update.contents:
                    for piece in pieces.of(content):
                        yield piece
        for piece in pieces.ending(session.to_dict):
            yield piece

    return reply


def _options(request: ResponseRequest, models: Sequence[str]) -> Json:
    asked = sampling(request)
    options = {"max_tokens" if name == "max_output_tokens" else name: asked[name] for name in asked}
    if instructions := instructions_of(request):
        options["instructions"] = instructions
    if model := model_of(request, models):
        options["model"] = model
    return options


def _messages(conversation: Conversation) -> list[Any]:
    from agent_framework import Content, Message

    messages: list[Any] = []
    for kind, group in groupby(conversation.entries, type):
        if kind is Called:
            # Calls in a row are of one answer, and models take them only as one message.
            messages.append(Message("assistant", [_call(entry) for entry in group if isinstance(entry, Called)]))
            continue
        for entry in group:
            if isinstance(entry, Returned):
                messages.append(Message("tool", [Content.from_function_result(entry.call_id, result=entry.output)]))
            elif isinstance(entry, Said):
                messages.append(Message(entry.role, [_content(part) for part in entry.parts]))
    return messages


def _call(entry: Called) -> Any:
    from agent_framework import Content

    return Content.from_function_call(entry.call_id, entry.name, arguments=entry.arguments)


def _decided(conversation: Conversation, requests: Mapping[str, Json]) -> Any:
    """The message with the caller's decisions on `requests`, which are contents of the framework by call id."""
    from agent_framework import Content, Message

    responses = []
    for call_id, decision in conversation.decisions.items():
        if call_id in requests:
            request = Content.from_dict(requests[call_id])
            call = request.function_call
            responses.append(Content.from_function_approval_response(decision.approved, request.id, call))
    return Message("user", responses)


def _content(part: str | Media) -> Any:
    from agent_framework import Content

    if isinstance(part, str):
        return Content.from_text(part)
    media_type = None
    if part.url.startswith("data:"):
        media_type = part.url[len("data:") :].partition(",")[0].partition(";")[0]
    return Content.from_uri(part.url, media_type=media_type or ("image/*" if part.is_image else "application/*"))


class _Pieces:
    """Turns the contents of a run into pieces of a response. Calls and reasoning come in parts, and are told whole."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._calls: dict[str, list[str]] = {}
        self._reasoning = ""
        self._said = ""
        self._requests: dict[str, Any] = {}
        self._sums = [0, 0, 0, 0]

    def of(self, content: Any) -> Iterator[Piece]:
        match content.type:
            case "text":
                yield from self._rest()
                yield from self._text(content)
            case "text_reasoning":
                self._reasoning = (content.text or "") if _replaces(content) else self._reasoning + (content.text or "")
            case "function_call":
                self._call_part(content)
            case "function_result":
                yield from self._rest()
                yield items.FunctionCallOutput(content.call_id, str(content.result))
            case "function_approval_request":
                self._requests[content.function_call.call_id] = content
            case "usage":
                self._add_usage(content.usage_details)
            case "error":
                raise AgentFailed(f"{content.error_code}: {content.message}")

    def ending(self, session: Callable[[], Json]) -> Iterator[Piece]:
        """What is left to tell. The first approval request keeps `session`, where no caller sees it."""
        yield from self._rest()
        note: Json = {}
        if self._requests:
            note = {
                "session": session(),
                "requests": {call_id: request.to_dict() for call_id, request in self._requests.items()},
            }
        for call_id, request in self._requests.items():
            call = request.function_call
            yield items.McpApprovalRequest(
                self._label, call.name, call.arguments or "{}", internal_metadata={"call_id": call_id, **note}
            )
            note = {}
        yield items.Usage(*self._sums)

    def _rest(self) -> Iterator[Piece]:
        """What was not told yet, because more of it could have come."""
        if self._reasoning:
            yield items.Reasoning(content=self._reasoning)
            self._reasoning = ""
        for call_id, (name, arguments) in self._calls.items():
            if call_id not in self._requests:
                yield items.FunctionCall(name, arguments or "{}", call_id=call_id)
        if self._calls:
            self._said = ""
        self._calls.clear()

    def _text(self, content: Any) -> Iterator[str]:
        text = content.text or ""
        if _replaces(content):
            # What was told cannot be taken back: only what it lacks is told.
            text = text.removeprefix(self._said) if text.startswith(self._said) else ""
        self._said += text
        yield text

    def _call_part(self, content: Any) -> None:
        call_id = content.call_id or next(reversed(self._calls), "")
        call = self._calls.setdefault(call_id, [content.name or "", ""])
        more = content.arguments or ""
        if not isinstance(more, str):
            call[1] = jsons.encode(more).decode()
        else:
            call[1] = more if _replaces(content) else call[1] + more

    def _add_usage(self, used: Any) -> None:
        self._sums = [before + (used.get(name) or 0) for before, name in zip(self._sums, _USAGE, strict=True)]


def _replaces(content: Any) -> bool:
    return bool(content.merge_mode == "replace")
