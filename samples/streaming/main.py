"""Says what it is told backwards, word by word; and counts down on an event stream."""

import asyncio
import os
from collections.abc import AsyncIterator

from cupola_agent import Agent, Request, Response, items

PAUSE = float(os.environ.get("PAUSE", "0.2"))

agent = Agent()


@agent.responses
async def reply(input: str) -> AsyncIterator[str | items.Reasoning | items.Usage]:  # noqa: A002
    words = input.split()
    yield items.Reasoning(f"There are {len(words)} words to turn around.")
    for number, word in enumerate(reversed(words)):
        if number:
            await asyncio.sleep(PAUSE)
            yield " "
        yield word
    yield items.Usage(input_tokens=len(words), output_tokens=len(words))


@agent.invocations
async def invoke(request: Request) -> Response:
    return Response(countdown(int(request.text())), media_type="text/event-stream")


async def countdown(seconds: int) -> AsyncIterator[str]:
    for left in range(seconds, 0, -1):
        yield f"data: {left}\n\n"
        await asyncio.sleep(PAUSE)
    yield "data: lift-off\n\n"


if __name__ == "__main__":
    agent.run()
