"""Serves an agent with the library's own server, in the loop of the test."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cupola_agent import Agent
from cupola_agent.server.serve import Server


@asynccontextmanager
async def serving(agent: Agent) -> AsyncIterator[int]:
    """The port it listens on. The end does not wait for requests in flight."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(agent, grace_seconds=10)
    await server.start([listener])
    hurry = asyncio.Event()
    try:
        yield listener.getsockname()[1]
    finally:
        hurry.set()
        await server.stop(hurry)
