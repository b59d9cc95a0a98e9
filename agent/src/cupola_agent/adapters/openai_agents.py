"""Agents of the OpenAI Agents SDK as handlers of responses. An extra: `cupola-agent[openai-agents]`.

agent.responses(handler(agents.Agent(name="helper", instructions="…", tools=[…])))
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from cupola_agent import items
from cupola_agent.adapters.conversation import (
    Called,
    Conversation,
    Entry,
    Media,
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


def handler(
    agent: Any, *, context: Any = None, run_config: Any = None, models: Sequence[str] = ()
) -> Callable[..., AsyncIterator[Piece]]:
    """Gives a handler that runs `agent`, an `agents.Agent`, with the conversation so far.

    `context` is what tools get as their context. The request's instructions come after the agent's own; its
    temperature, top_p and max_output_tokens are those of the run, and its model where `models` names it. A tool with
    `needs_approval` becomes an `mcp_approval_request`: the run goes on when its response comes. Nothing is traced
    unless `run_config`, an `agents.RunConfig`, says so.
    """

    run_context = context

    async def reply(request: ResponseRequest, context: ResponseContext, history: list[Json]) -> AsyncIterator[Piece]:
        from agents import Runner

        running = _with_instructions(agent, instructions_of(request))
        conversation = Conversation.of(history, context.input_items)
        state = await _interrupted_state(running, history, conversation, run_context)
        given = state or [_input(entry) for entry in conversation.entries if not _pending(entry, conversation)]
        result = Runner.run_streamed(
            running, given, context=run_context, run_config=_run_config(run_config, request, models)
        )
        calls = {} if state is None else _calls(conversation)
        try:
            said = False
            async for event in result.stream_events():
                if event.type == "raw_response_event":
                    if event.data.type == "response.output_text.delta":
                        said = True
                        yield event.data.delta
                elif event.type == "run_item_stream_event":
                    if event.name == "message_output_created":
                        if not said:
                            yield _text(event.item.raw_item)
                        said = False
                        continue
                    item = _item(event.item)
                    if isinstance(item, items.FunctionCall) and item.call_id is not None:
                        # Told with its output: until then it may turn out to be one that needs approval.
                        calls[item.call_id] = item
                        continue
                    if isinstance(item, items.FunctionCallOutput) and item.call_id in calls:
                        yield calls.pop(item.call_id)
                    if item is not None:
                        yield item
        finally:
            result.cancel()
        for request_item in _approval_requests(result, running):
            yield request_item
        yield _usage(result.context_wrapper.usage)

    return reply


def _calls(conversation: Conversation) -> dict[str, items.FunctionCall]:
    """The calls that the caller has decided on."""
    return {
        entry.call_id: items.FunctionCall(entry.name, entry.arguments, call_id=entry.call_id)
        for entry in conversation.entries
        if isinstance(entry, Called) and entry.call_id in conversation.decisions
    }


def _with_instructions(agent: Any, instructions: str | None) -> Any:
    """The agent with the request's instructions after its own."""
    if not instructions:
        return agent

    async def combined(run_context: Any, running: Any) -> str:
        own = await agent.get_system_prompt(run_context)
        return f"{own}\n\n{instructions}" if own else instructions

    return agent.clone(instructions=combined)


def _run_config(given: Any, request: ResponseRequest, models: Sequence[str]) -> Any:
    from dataclasses import replace

    from agents import ModelSettings, RunConfig

    config = given or RunConfig(tracing_disabled=True)
    asked = sampling(request)
    chosen = ModelSettings(
        temperature=asked.get("temperature"), top_p=asked.get("top_p"), max_tokens=asked.get("max_output_tokens")
    )
    settings = config.model_settings.resolve(chosen) if config.model_settings else chosen
    return replace(config, model_settings=settings, model=model_of(request, models) or config.model)


def _pending(entry: Entry, conversation: Conversation) -> bool:
    return isinstance(entry, Called) and entry.call_id in conversation.decisions


def _input(entry: Entry) -> Json:
    """The entry as an input item of the SDK, which are those of the protocol without what our store adds."""
    if isinstance(entry, Said):
        kind = "output_text" if entry.role == "assistant" else "input_text"
        return {"role": entry.role, "content": [_part(part, kind) for part in entry.parts]}
    if isinstance(entry, Called):
        call = {"type": "function_call", "call_id": entry.call_id, "name": entry.name}
        return {**call, "arguments": entry.arguments}
    return {"type": "function_call_output", "call_id": entry.call_id, "output": entry.output}


def _part(part: str | Media, kind: str) -> Json:
    if isinstance(part, str):
        return {"type": kind, "text": part}
    if part.is_image:
        return {"type": "input_image", "image_url": part.url, "detail": "auto"}
    name = "file_data" if part.url.startswith("data:") else "file_url"
    return {"type": "input_file", name: part.url}


def _item(given: Any) -> items.Item | None:
    """What the run did, as an item; None for what callers need not see."""
    raw = given.raw_item
    fields = dict(raw) if isinstance(raw, Mapping) else raw.model_dump(exclude_none=True)
    match given.type:
        case "tool_call_item" | "handoff_call_item" if fields.get("type") == "function_call":
            return items.FunctionCall(fields["name"], fields["arguments"], call_id=fields["call_id"])
        case "tool_call_output_item":
            return items.FunctionCallOutput(fields["call_id"], str(given.output))
        case "handoff_output_item":
            return items.FunctionCallOutput(fields["call_id"], str(fields["output"]))
        case "reasoning_item":
            return items.Reasoning([part["text"] for part in fields.get("summary") or ()])
    return None


def _text(message: Any) -> str:
    return "".join(getattr(part, "text", "") for part in message.content)


def _approval_requests(result: Any, agent: Any) -> list[items.Item]:
    """The calls that wait for the caller; the first keeps the state of the run, where no caller sees it."""
    state = result.to_state().to_json(context_serializer=_nothing) if result.interruptions else None
    requests: list[items.Item] = []
    for number, waiting in enumerate(result.interruptions):
        call = waiting.raw_item
        note = {"call_id": call.call_id, **({} if number else {"run_state": state})}
        requests.append(items.McpApprovalRequest(agent.name, call.name, call.arguments, internal_metadata=note))
    return requests


def _nothing(_: Any) -> Json:
    """What is kept of the context that tools get: it is the agent's own, and the same in the next turn."""
    return {}


async def _interrupted_state(agent: Any, history: list[Json], conversation: Conversation, context: Any) -> Any:
    """The run that waits for the decisions of this turn, with them made; None when no run waits."""
    from agents import RunState

    kept = noted(history, "run_state") if conversation.decisions else None
    if kept is None:
        return None
    state = await RunState.from_json(agent, kept, context_deserializer=lambda _: context)
    for waiting in state.get_interruptions():
        decision = conversation.decisions.get(waiting.raw_item.call_id)
        if decision is not None and decision.approved:
            state.approve(waiting)
        elif decision is not None:
            state.reject(waiting, rejection_message=decision.reason)
    return state


def _usage(usage: Any) -> items.Usage:
    return items.Usage(
        usage.input_tokens,
        usage.output_tokens,
        usage.input_tokens_details.cached_tokens or 0,
        usage.output_tokens_details.reasoning_tokens or 0,
    )
