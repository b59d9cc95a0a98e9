"""The ASGI side of one HTTP exchange: read the body, notice a client that leaves, send the answer."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = tuple[tuple[str, str], ...]


class ClientDisconnectedError(Exception):
    """The client closed its connection before the answer was complete."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer ready for the wire. An iterator as body is streamed, one chunk per piece."""

    status: int
    headers: Headers
    body: bytes | AsyncGenerator[bytes, None]

    def with_headers(self, *more: tuple[str, str]) -> "Answer":
        """The same answer with these headers, each in place of one of the same name."""
        names = {name for name, _ in more}
        return replace(self, headers=(*(pair for pair in self.headers if pair[0] not in names), *more))


def text_answer(status: int, text: str, *headers: tuple[str, str]) -> Answer:
    return Answer(status, (("content-type", "text/plain; charset=utf-8"), *headers), text.encode())


def json_answer(status: int, body: bytes, *headers: tuple[str, str]) -> Answer:
    return Answer(status, (("content-type", "application/json"), *headers), body)


def decoded_headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


async def read_body(receive: Receive) -> bytes:
    """Raises ClientDisconnectedError when the body ends early."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


@asynccontextmanager
async def cancelled_on_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels what runs inside when the client leaves, and then raises ClientDisconnectedError.

    The same dance as `asyncio.timeout`: only the cancellation made here becomes the exception; one that
    comes from outside stays a CancelledError.
    """
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("no task to cancel")
    before = task.cancelling()
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            continue
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError as error:
        if gone and task.uncancel() <= before:
            raise ClientDisconnectedError from error
        raise
    finally:
        watcher.cancel()


async def send_answer(send: Send, answer: Answer, *, bodiless: bool = False) -> None:
    """Sends the answer; `bodiless` (HEAD) sends its headers only.

    An exception of a streamed body leaves the answer without its end, so that the server cuts the connection.
    """
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    if isinstance(answer.body, bytes):
        headers.append((b"content-length", str(len(answer.body)).encode()))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if bodiless else answer.body})
        return
    async with aclosing(answer.body) as pieces:
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if not bodiless:
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
