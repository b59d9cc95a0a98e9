"""Graphs of LangGraph as handlers of responses. An extra: `cupola-agent[langgraph]`.

agent.responses(handler(builder.compile()))
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from itertools import groupby
from typing import Any

from cupola_agent import items, jsons
from cupola_agent.adapters.conversation import (
    Called,
    Conversation,
    Entry,
    Media,
    Returned,
    Said,
    instructions_of,
    model_of,
    sampling,
)
from cupola_agent.context import ResponseContext
from cupola_agent.responses.objects import ResponseRequest

Json = dict[str, Any]
Piece = str | items.Item | items.Usage

INTERRUPT = "interrupt"
"""The name of the function call that an interrupt of a graph becomes."""


def handler(graph: Any, *, models: Sequence[str] = ()) -> Callable[..., AsyncIterator[Piece]]:
    """Gives a handler that runs a compiled graph whose state has `messages`.

    A graph with a checkpointer remembers: it gets the new input, and a `thread_id` for this user's conversation. Any
    other gets the conversation so far, after the request's instructions. In `configurable` a graph finds
    `instructions`, `temperature`, `top_p` and `max_output_tokens` as far as the request names them, and `model` where
    `models` names it. An `interrupt(value)` becomes a call of the function `interrupt`, and the output that the
    caller sends for it, as JSON where it is JSON, is what `interrupt` gives in the graph.
    """

    async def reply(request: ResponseRequest, context: ResponseContext, history: list[Json]) -> AsyncIterator[Piece]:
        remembers = bool(graph.checkpointer)
        config = _config(request, models, _thread_id(context) if remembers else None)
        instructions = instructions_of(request)
        conversation = Conversation.of(() if remembers else history, context.input_items)
        given = await _resumption(graph, config, conversation) if remembers else None
        if given is None:
            messages = _messages(conversation.entries)
            if instructions and not remembers:
                messages.insert(0, _message(Said("system", (instructions,))))
            given = {"messages": messages}
        usage = _Usage()
        async with aclosing(graph.astream(given, config, stream_mode=["messages", "updates"])) as parts:
            async for mode, data in parts:
                if mode == "messages":
                    if text := _text(data[0]):
                        yield text
                    continue
                for node, update in data.items():
                    for item in _interrupts(update) if node == "__interrupt__" else _items(update, usage):
                        yield item
        yield usage.total

    return reply


class _Usage:
    """Tokens, added up over the calls of models."""

    def __init__(self) -> None:
        self._sums = [0, 0, 0, 0]

    def add(self, used: Mapping[str, Any]) -> None:
        given, made = used.get("input_token_details") or {}, used.get("output_token_details") or {}
        parts = (used["input_tokens"], used["output_tokens"], given.get("cache_read"), made.get("reasoning"))
        self._sums = [before + (part or 0) for before, part in zip(self._sums, parts, strict=True)]

    @property
    def total(self) -> items.Usage:
        return items.Usage(*self._sums)


def _thread_id(context: ResponseContext) -> str:
    """The key of the graph's memory. Callers choose the names of conversations, so one alone would mix users."""
    return jsons.encode([context.user_id, context.chain_id]).decode()


def _config(request: ResponseRequest, models: Sequence[str], thread_id: str | None) -> Json:
    named = {
        "thread_id": thread_id,
        "model": model_of(request, models),
        "instructions": instructions_of(request),
        **sampling(request),
    }
    return {"configurable": {name: value for name, value in named.items() if value is not None}}


async def _resumption(graph: Any, config: Json, conversation: Conversation) -> Any:
    """What resumes an interrupted graph with the outputs that came for its interrupts; None without any."""
    from langgraph.types import Command

    waiting = {interrupt.id for interrupt in (await graph.aget_state(config)).interrupts}
    answers = {
        entry.call_id: _value(entry.output)
        for entry in conversation.entries
        if isinstance(entry, Returned) and entry.call_id in waiting
    }
    return Command(resume=answers) if answers else None


def _value(output: str) -> Any:
    try:
        return jsons.decode(output.encode())
    except ValueError:
        return output


def _messages(entries: Iterable[Entry]) -> list[Any]:
    from langchain_core.messages import AIMessage

    messages: list[Any] = []
    for kind, group in groupby(entries, type):
        if kind is Called:
            # Calls in a row are of one answer, and models take them only as one message.
            calls = [entry for entry in group if isinstance(entry, Called)]
            made = [{"id": call.call_id, "name": call.name, "args": call.decoded} for call in calls]
            messages.append(AIMessage("", tool_calls=made))
        else:
            messages += [_message(entry) for entry in group]
    return messages


def _message(entry: Entry) -> Any:
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

    if isinstance(entry, Returned):
        return ToolMessage(entry.output, tool_call_id=entry.call_id)
    if isinstance(entry, Called):
        raise TypeError("a call is part of a message")
    if entry.role == "assistant":
        return AIMessage(entry.text)
    if entry.role == "user":
        plain = all(isinstance(part, str) for part in entry.parts)
        return HumanMessage(entry.text if plain else [_block(part) for part in entry.parts])
    return SystemMessage(entry.text)


def _block(part: str | Media) -> Json:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = "image" if part.is_image else "file"
    if part.url.startswith("data:"):
        head, _, data = part.url.partition(",")
        return {"type": kind, "base64": data, "mime_type": head[len("data:") :].partition(";")[0]}
    return {"type": kind, "url": part.url}


def _text(message: Any) -> str:
    """The text of a piece of the assistant's message."""
    if message.type not in ("ai", "AIMessageChunk"):
        return ""
    content = message.content
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)


def _items(update: Any, usage: _Usage) -> list[items.Item]:
    """The calls and outputs of tools in what one node has added to the state."""
    given = update.get("messages") if isinstance(update, Mapping) else None
    messages: list[Any] = given if isinstance(given, list) else [given]
    found: list[items.Item] = []
    for message in messages:
        kind = getattr(message, "type", "")
        if kind == "ai":
            if message.usage_metadata:
                usage.add(message.usage_metadata)
            found += [items.FunctionCall(call["name"], call["args"], call_id=call["id"]) for call in message.tool_calls]
        elif kind == "tool":
            found.append(items.FunctionCallOutput(message.tool_call_id, str(message.text)))
    return found


def _interrupts(interrupts: Any) -> list[items.Item]:
    return [items.FunctionCall(INTERRUPT, {"value": interrupt.value}, call_id=interrupt.id) for interrupt in interrupts]
