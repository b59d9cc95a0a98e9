"""The seam between an agent and whatever serves it: one HTTP exchange, one WebSocket.

The library's own server implements these directly; `asgi.py` implements them for other servers, and `testing.py`
in memory. The agent sees nothing else of the network.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Protocol

HeaderPairs = Sequence[tuple[bytes, bytes]]

MAX_BODY = 64 * 1024 * 1024
"""Bytes of a request's body that `Exchange.body` collects at most."""


class ClientDisconnectedError(Exception):
    """The client closed its connection before the exchange was complete."""


class BodyTooLargeError(Exception):
    """The body is larger than the exchange collects."""


class Exchange(Protocol):
    """One request and the place for its answer.

    `path` is decoded; header names are in lower case, repeated ones are joined by ", ".
    """

    @property
    def method(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def query_string(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...

    async def body(self) -> bytes:
        """The whole body. Raises ClientDisconnectedError when it ends early, BodyTooLargeError beyond MAX_BODY."""
        ...

    def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body as it arrives, without a limit; instead of `body`. Raises ClientDisconnectedError."""
        ...

    def respond(self, status: int, headers: HeaderPairs, body: bytes) -> None:
        """The whole answer at once. Adds content-length; leaves the body out for HEAD. Once, and not with `start`."""
        ...

    def start(self, status: int, headers: HeaderPairs) -> None:
        """The head of an answer that is streamed. It goes out at once, with what is written in this turn of the loop."""
        ...

    def write(self, data: bytes) -> None:
        """A piece of the streamed answer, in one chunk. Never waits; does nothing once the client is gone."""
        ...

    async def drained(self) -> None:
        """Waits while the client reads more slowly than the agent writes. Raises ClientDisconnectedError."""
        ...

    @property
    def answered(self) -> bool:
        """Whether `respond` or `start` was called."""
        ...

    def finish(self) -> None:
        """The end of the streamed answer."""
        ...

    def abort(self) -> None:
        """Cuts the connection, which tells the client that the answer is not complete."""
        ...

    @property
    def disconnected(self) -> bool:
        """Whether the client has left before the answer was complete."""
        ...

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the client leaves before the answer is complete; at once when it has left."""
        ...


class SocketClosedError(Exception):
    """The WebSocket is closed. `code` is the peer's close code, 1006 when it left without one."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the WebSocket was closed with {code}")
        self.code = code


class Socket(Protocol):
    """One WebSocket. Either `reject` or `accept` comes first; messages are whole, text as str."""

    @property
    def path(self) -> str: ...
    @property
    def query_string(self) -> bytes: ...
    @property
    def headers(self) -> Mapping[str, str]: ...

    async def reject(self, status: int) -> None:
        """Refuses the upgrade with this HTTP status."""
        ...

    async def accept(self, headers: HeaderPairs = ()) -> None: ...

    async def receive(self) -> str | bytes:
        """The next message. Raises SocketClosedError."""
        ...

    async def send(self, message: str | bytes) -> None:
        """Waits while the peer is slow. Raises SocketClosedError."""
        ...

    async def close(self, code: int = 1000, reason: str = "") -> None: ...


class Application(Protocol):
    """What a server serves. `Agent` is one."""

    async def start(self) -> None:
        """Once, before the first exchange."""
        ...

    def drain(self) -> None:
        """The process was told to stop: no new work is taken, what runs may end. Called once, from the loop."""
        ...

    async def stop(self) -> None:
        """Once, after the last exchange or when their time is over; ends what still runs."""
        ...

    async def answer(self, exchange: Exchange) -> None:
        """Answers one request, in a task of its own. It never raises but for cancellation."""
        ...

    async def talk(self, socket: Socket) -> None:
        """Holds one WebSocket, in a task of its own."""
        ...
