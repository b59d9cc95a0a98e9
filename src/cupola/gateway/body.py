"""Requests as they come: bodies with a limit, and callers that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

from starlette.types import Receive, Scope, Send

from cupola.domain.errors import CupolaError

DRAIN_LIMIT = 256 * 1024 * 1024
"""Bytes of a too large body that are read and dropped, so that the caller gets to see the refusal."""


class ClientDisconnected(Exception):
    """The caller left before its request was complete; nobody is there to answer."""


class Endpoint:
    """Lets a route call a method as an ASGI application."""

    def __init__(self, application: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._application(scope, receive, send)
        except ClientDisconnected:
            # Nobody is left to answer; what the request held has been given back on the way here.
            return


class Bodies:
    """Reads bodies of at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def check_length(self, scope: Scope) -> None:
        """Refuse a body whose announced length is too large. Raises CupolaError (413)."""
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._limit:
            raise self._too_large()

    async def read(self, receive: Receive) -> bytes:
        """The whole body. Raises CupolaError (413), ClientDisconnected."""
        parts: list[bytes] = []
        size = 0
        async for part in _received(receive):
            size += len(part)
            if size <= self._limit:
                parts.append(part)
            elif size > DRAIN_LIMIT:
                break
        if size > self._limit:
            raise self._too_large()
        return b"".join(parts)

    async def stream(self, receive: Receive, read: asyncio.Event) -> AsyncIterator[bytes]:
        """The body as it comes; `read` is set once nothing more of it is asked for. Raises what `read` raises."""
        size = 0
        try:
            async for part in _received(receive):
                size += len(part)
                if size > self._limit:
                    raise self._too_large()
                yield part
        finally:
            # Also when an agent has answered before it read everything: from now on somebody else watches for the caller.
            read.set()

    def _too_large(self) -> CupolaError:
        return CupolaError(
            "payload_too_large",
            f"The body is larger than {self._limit} bytes, the setting max_request_body of this server.",
            status=413,
        )


async def _received(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def while_connected(receive: Receive, body_read: asyncio.Event | None, work: Coroutine[None, None, None]) -> None:
    """Do the work, and give it up when the caller leaves; `body_read` is set once nobody else calls `receive`.

    Raises ClientDisconnected.
    """

    async def watch() -> None:
        if body_read is not None:
            await body_read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
