"""Echoes what it is told, on both protocols; told "count", it counts in a file that outlives the process."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Lock

from cupola_agent import Agent, Request, Response

agent = Agent()
counting = Lock()


@agent.responses
async def reply(input: str) -> AsyncIterator[str]:  # noqa: A002
    if input == "count":
        yield f"count: {await asyncio.to_thread(count)}"
        return
    yield "Echo:"
    for word in input.split(" "):
        yield f" {word}"


@agent.invocations
async def invoke(request: Request) -> Response:
    return Response(request.body, media_type=request.content_type or None)


def count() -> int:
    file = Path.home() / "count"
    with counting:
        number = int(file.read_text()) + 1 if file.exists() else 1
        file.write_text(str(number))
    return number


if __name__ == "__main__":
    agent.run()
