"""Responses that go on after their request has been answered: they keep their sandbox awake until they are complete."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from cupola.sandbox.http import AgentConnectionError, Headers
from cupola.sessions.launcher import RunningAgent

FIRST_LOOK, LONGEST_PAUSE = 0.25, 5.0
"""Seconds until the agent is asked how far it is; the pauses double up to the longest."""
ANSWER_DEADLINE = 10.0
ANSWER_LIMIT = 64 * 1024 * 1024


class _Response(msgspec.Struct):
    status: str = ""


_decode = msgspec.json.Decoder(_Response).decode


def until_complete(response_id: str, user: Headers) -> Callable[[RunningAgent], Awaitable[None]]:
    """What waits until an agent has nothing more to do for a response, or does not know it (container contract, 4.7).

    `user` are the headers that say whose the response is: to others, an agent does not know it.
    """

    async def wait(agent: RunningAgent) -> None:
        pause = FIRST_LOOK
        while not agent.sandbox.exited.done():
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            if not await _works(agent, response_id, user):
                return

    return wait


async def _works(agent: RunningAgent, response_id: str, user: Headers) -> bool:
    try:
        async with (
            asyncio.timeout(ANSWER_DEADLINE),
            await agent.client.request(b"GET", b"/responses/" + response_id.encode(), list(user)) as answer,
        ):
            if answer.status != 200:
                return False
            return _decode(await answer.read(ANSWER_LIMIT)).status in ("queued", "in_progress")
    except (AgentConnectionError, TimeoutError, msgspec.MsgspecError, UnicodeError):
        # It has ended, sleeps because it has had its time, or speaks another language.
        return False
