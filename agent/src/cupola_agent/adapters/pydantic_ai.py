"""Agents of Pydantic AI as handlers of responses. An extra: `cupola-agent[pydantic-ai]`.

agent.responses(handler(pydantic_ai.Agent(model, instructions="…", tools=[…])))
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from cupola_agent import items
from cupola_agent.adapters.conversation import (
    Called,
    Conversation,
    Decision,
    Media,
    Returned,
    instructions_of,
    model_of,
    sampling,
)
from cupola_agent.context import ResponseContext
from cupola_agent.responses.objects import ResponseRequest

Json = dict[str, Any]
Piece = str | items.Item | items.Usage


def handler(agent: Any, *, deps: Any = None, models: Sequence[str] = ()) -> Callable[..., AsyncIterator[Piece]]:
    """Gives a handler that runs `agent`, a `pydantic_ai.Agent`, with the conversation so far.

    `deps` are the run's. The request's instructions come after the agent's own; its temperature, top_p and
    max_output_tokens are those of the run, and its model where `models` names it. Where the agent may put off calls
    (its output type has `DeferredToolRequests`), those that need approval become `mcp_approval_request` items, and
    the others `function_call` items that the caller answers. An output that is no text is given as JSON.
    """

    async def reply(request: ResponseRequest, context: ResponseContext, history: list[Json]) -> AsyncIterator[Piece]:
        from pydantic_ai import AgentRunResultEvent

        conversation = Conversation.of(history, context.input_items)
        asked = sampling(request)
        settings = {"max_tokens" if name == "max_output_tokens" else name: asked[name] for name in asked}
        calls: dict[str, items.FunctionCall] = {}
        async with agent.run_stream_events(
            message_history=_messages(conversation),
            deferred_tool_results=_decided(conversation.decisions),
            model=model_of(request, models),
            instructions=instructions_of(request),
            model_settings=settings or None,
            deps=deps,
        ) as events:
            async for event in events:
                if isinstance(event, AgentRunResultEvent):
                    for last in _ending(event.result, agent, calls):
                        yield last
                    continue
                piece = _piece(event)
                if isinstance(piece, items.FunctionCall):
                    # Told with its output: until then it may turn out to be one that needs approval.
                    calls[event.part.tool_call_id] = piece
                    continue
                if isinstance(piece, items.FunctionCallOutput) and piece.call_id in calls:
                    yield calls.pop(piece.call_id)
                if piece is not None:
                    yield piece

    return reply


def _messages(conversation: Conversation) -> list[Any]:
    """The conversation as messages of the framework, one for what each side said in a row."""
    from pydantic_ai.messages import (
        ModelRequest,
        ModelResponse,
        SystemPromptPart,
        TextPart,
        ToolCallPart,
        ToolReturnPart,
        UserPromptPart,
    )

    messages: list[Any] = []
    names: dict[str, str] = {}

    def add(kind: Any, part: Any) -> None:
        if not messages or not isinstance(messages[-1], kind):
            messages.append(kind(parts=[]))
        messages[-1].parts.append(part)

    for entry in conversation.entries:
        if isinstance(entry, Called):
            names[entry.call_id] = entry.name
            add(ModelResponse, ToolCallPart(entry.name, entry.arguments, entry.call_id))
        elif isinstance(entry, Returned):
            add(ModelRequest, ToolReturnPart(names.get(entry.call_id, ""), entry.output, entry.call_id))
        elif entry.role == "assistant":
            add(ModelResponse, TextPart(entry.text))
        elif entry.role == "user":
            add(ModelRequest, UserPromptPart([_content(part) for part in entry.parts]))
        else:
            add(ModelRequest, SystemPromptPart(entry.text))
    return messages


def _content(part: str | Media) -> Any:
    from pydantic_ai.messages import BinaryContent, DocumentUrl, ImageUrl

    if isinstance(part, str):
        return part
    if part.url.startswith("data:"):
        return BinaryContent.from_data_uri(part.url)
    return ImageUrl(part.url) if part.is_image else DocumentUrl(part.url)


def _decided(decisions: Any) -> Any:
    from pydantic_ai import DeferredToolResults, ToolApproved, ToolDenied

    def result(decision: Decision) -> Any:
        if decision.approved:
            return ToolApproved()
        return ToolDenied(decision.reason) if decision.reason else ToolDenied()

    if not decisions:
        return None
    return DeferredToolResults(approvals={call_id: result(decision) for call_id, decision in decisions.items()})


def _piece(event: Any) -> Piece | None:
    """What an event of the run is to the caller; None for what it need not see."""
    match event.event_kind:
        case "part_start" if event.part.part_kind == "text":
            return str(event.part.content)
        case "part_delta" if event.delta.part_delta_kind == "text":
            return str(event.delta.content_delta)
        case "part_end" if event.part.part_kind == "thinking" and event.part.content:
            return items.Reasoning(content=event.part.content)
        case "function_tool_call":
            call = event.part
            return items.FunctionCall(call.tool_name, call.args_as_json_str(), call_id=call.tool_call_id)
        case "function_tool_result":
            return items.FunctionCallOutput(event.part.tool_call_id, event.part.model_response_str())
    return None


def _ending(result: Any, agent: Any, calls: dict[str, items.FunctionCall]) -> list[Piece]:
    """What is left to tell at the end of a run; `calls` are those without an output."""
    from pydantic_ai import DeferredToolRequests

    pieces: list[Piece] = []
    if isinstance(result.output, DeferredToolRequests):
        pieces += [calls[call.tool_call_id] for call in result.output.calls if call.tool_call_id in calls]
        label = agent.name or "agent"
        for call in result.output.approvals:
            note = {"call_id": call.tool_call_id}
            arguments = call.args_as_json_str()
            pieces.append(items.McpApprovalRequest(label, call.tool_name, arguments, internal_metadata=note))
    elif not isinstance(result.output, str):
        from pydantic_core import to_json

        pieces.append(to_json(result.output).decode())
    usage = result.usage
    pieces.append(
        items.Usage(usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.output_reasoning_tokens)
    )
    return pieces
