"""A long job that tells how far it is, ends well when it is cancelled, and goes on when nobody listens."""

import asyncio
import os
from collections.abc import AsyncIterator

from cupola_agent import Agent, ResponseContext

PAUSE = float(os.environ.get("PAUSE", "1"))

agent = Agent()


@agent.responses
async def reply(input: str, context: ResponseContext) -> AsyncIterator[str]:  # noqa: A002
    steps = int(input)
    for step in range(1, steps + 1):
        yield f"step {step} of {steps}\n"
        try:
            async with asyncio.timeout(PAUSE):
                await context.cancelled.wait()
        except TimeoutError:
            continue
        yield "stopped\n"
        return
    yield "done"


if __name__ == "__main__":
    agent.run()
