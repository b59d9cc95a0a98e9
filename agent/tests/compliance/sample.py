"""The agent that the compliance checks call: small, and with just enough sense to be asked about."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cupola_agent import Agent, ResponseContext, items

agent = Agent()


@agent.responses
async def reply(
    input: str,  # noqa: A002
    context: ResponseContext,
    request: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> AsyncIterator[Any]:
    known = [*history, *context.input_items]
    calls = {item["call_id"] for item in known if item["type"] == "function_call"}
    for item in context.input_items:
        if item["type"] == "function_call_output" and item["call_id"] not in calls:
            yield items.Failed("tool_call_not_found", f"No tool call has the id {item['call_id']!r}.")
            return
    if request.get("tools"):
        name = request["tools"][0]["name"]
        yield items.Reasoning(summary="A tool knows this.")
        yield items.FunctionCall(name=name, arguments='{"location":"here"}', call_id="call_1")
        return
    for word in f"I have read {len(known)} items, the last one: {input.splitlines()[-1]}".split(" "):
        yield f"{word} "
