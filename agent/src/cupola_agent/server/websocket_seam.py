"""What the server needs of a WebSocket, so that those without one never import the framing."""

from typing import Protocol

from cupola_agent.exchange import Socket


class ServedSocket(Socket, Protocol):
    """A WebSocket of ours."""

    async def end(self, code: int, reason: str) -> None: ...
