"""The agent that is fuzzed: says what it was told on both protocols, and never fails by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cupola_agent import Agent, Request, Response

agent = Agent()


@agent.responses
async def reply(input: str) -> AsyncIterator[str]:  # noqa: A002
    yield "You said: "
    yield input


@agent.invocations
async def invoke(request: Request) -> Response:
    return Response(request.body, media_type="application/octet-stream")
