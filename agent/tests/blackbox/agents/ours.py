"""The agent under test on cupola-agent. See script.py for what it can be told to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cupola_agent import Agent, ResponseContext, items

from agent.tests.blackbox.agents import script

agent = Agent()


@agent.responses
async def reply(
    input: str,  # noqa: A002
    context: ResponseContext,
    history: Sequence[Mapping[str, Any]],
) -> AsyncIterator[Any]:
    for step in script.parse(input):
        match step.verb:
            case "say":
                yield step.argument
            case "gate":
                if not await script.pass_gate(step.argument, context.cancelled):
                    return
            case "hold":
                await script.pass_gate(step.argument)
            case "raise":
                raise LookupError("a secret detail")
            case "fail":
                code, _, message = step.argument.partition(" ")
                yield items.Failed(code, message)
            case "incomplete":
                yield items.Incomplete(step.argument)
            case "call":
                yield items.FunctionCall(name="add", arguments='{"a":1}', call_id="call_1")
            case "reason":
                yield items.Reasoning(summary=step.argument)
            case "refuse":
                yield items.Refusal(step.argument)
            case "cite":
                yield items.Message(text=step.argument, annotations=[dict(script.CITATION)])
            case "item":
                yield dict(script.ITEMS[step.argument])
            case "history":
                yield script.summary(history)
            case "tell":
                yield _told(step.argument, context)
            case _:
                raise ValueError(f"no such verb: {step.verb}")


def _told(what: str, context: ResponseContext) -> str:
    name, _, key = what.partition(" ")
    match name:
        case "user":
            return context.user_id or "nobody"
        case "call":
            return context.call_id or "none"
        case "response":
            return context.response_id
        case "conversation":
            return context.conversation_id or "none"
        case "header":
            return context.client_headers.get(key, "none")
        case "query":
            return context.query_parameters.get(key, "none")
        case _:
            raise ValueError(f"nothing to tell about {name}")
