"""One request on a connection of ours, and the bytes of its answer."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING

from cupola_agent.exchange import MAX_BODY, BodyTooLargeError, ClientDisconnectedError, HeaderPairs
from cupola_agent.server.heads import Head, render

if TYPE_CHECKING:
    from cupola_agent.server.connection import Connection

BODY_BUFFER = 256 * 1024
"""Bytes of a body that are kept while nobody reads them; then the client has to wait."""
WRITE_BUFFER = 64 * 1024
"""Bytes that are gathered at most before they go to the transport, even within one turn of the loop."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"connection: close\r\n"
_KEEP_ALIVE = b"connection: keep-alive\r\n"
_CHUNKED = b"transfer-encoding: chunked\r\n"
_LAST_CHUNK = b"0\r\n\r\n"

logger = logging.getLogger("cupola_agent.server")


class HttpExchange:
    """Implements `exchange.Exchange`. What is written within one turn of the loop leaves in one chunk."""

    __slots__ = (
        "_answer_closes",
        "_bodiless",
        "_body",
        "_body_ended",
        "_body_size",
        "_callbacks",
        "_chunked",
        "_collecting",
        "_connection",
        "_expects_continue",
        "_head",
        "_keep_alive",
        "_left",
        "_pending",
        "_pending_size",
        "_waiter",
        "answered",
        "disconnected",
        "ended",
        "headers",
        "http_version",
        "method",
        "path",
        "query_string",
        "raw_path",
        "sent",
        "status",
    )

    def __init__(
        self,
        connection: "Connection",
        method: str,
        target: tuple[str, bytes, bytes],
        headers: dict[str, str],
        http_version: str,
        keep_alive: bool,
    ) -> None:
        self.method = method
        self.path, self.raw_path, self.query_string = target
        self.headers: Mapping[str, str] = headers
        self.http_version = http_version
        self.disconnected = False
        self.answered = False
        self.sent = False
        self.ended = False
        self.status = 0
        self._connection = connection
        self._keep_alive = keep_alive
        self._expects_continue = "expect" in headers and headers["expect"].lower() == "100-continue"
        self._body: list[bytes] = []
        self._body_size = 0
        self._body_ended = False
        self._collecting = False
        self._waiter: asyncio.Future[None] | None = None
        self._callbacks: list[Callable[[], None]] | None = None
        self._pending: list[bytes] = []
        self._pending_size = 0

    @property
    def client(self) -> tuple[str, int] | None:
        return _address(self._connection.transport.get_extra_info("peername"))

    @property
    def server(self) -> tuple[str, int] | None:
        return _address(self._connection.transport.get_extra_info("sockname"))

    # The body of the request.

    async def body(self) -> bytes:
        if not self._body_ended:
            self._collecting = True
            if int(self.headers.get("content-length", 0)) > MAX_BODY:
                raise BodyTooLargeError
            self._connection.regulate_reading()
            while not self._body_ended:
                if self._body_size > MAX_BODY:
                    raise BodyTooLargeError
                await self._more_body()
        if self._body_size > MAX_BODY:
            raise BodyTooLargeError
        parts = self._body
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            if self._body:
                parts, self._body = self._body, []
                self._body_size = 0
                self._connection.regulate_reading()
                for part in parts:
                    yield part
            elif self._body_ended:
                return
            else:
                await self._more_body()

    async def _more_body(self) -> None:
        if self.disconnected:
            raise ClientDisconnectedError
        if self._expects_continue and not self._body and not self.answered:
            self._connection.transport.write(_CONTINUE)
        self._expects_continue = False
        self._waiter = self._connection.loop.create_future()
        self._connection.waiting_for_body(self._collecting)
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self.disconnected and not self._body_ended:
            raise ClientDisconnectedError

    @property
    def body_overflows(self) -> bool:
        limit = MAX_BODY if self._collecting else BODY_BUFFER
        return self._body_size > limit

    def feed_body(self, data: bytes) -> None:
        self._body.append(data)
        self._body_size += len(data)
        if self._waiter is not None:
            self._wake()
        if self._body_size > BODY_BUFFER:
            self._connection.regulate_reading()

    def end_body(self) -> None:
        self._body_ended = True
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # The answer.

    def respond(self, status: int, headers: HeaderPairs, body: bytes) -> None:
        if self.answered:
            raise RuntimeError("the answer has begun already")
        head = render(status, headers)
        self.answered = True
        self.status = status
        if self.disconnected:
            return
        closes = self._closes(head) or not self._body_ended
        framing = b"" if status == 204 else b"content-length: %d\r\n" % len(body)
        self.sent = True
        self._connection.transport.write(
            b"%b%b%b\r\n%b"
            % (head.lines, framing, self._connection_line(head, closes), b"" if self._has_no_body(status) else body)
        )
        self._end(closes)

    def start(self, status: int, headers: HeaderPairs) -> None:
        if self.answered:
            raise RuntimeError("the answer has begun already")
        head = render(status, headers)
        self.answered = True
        self.status = status
        closes = self._closes(head)
        framing = b""
        self._chunked = False
        self._left = head.declared_length
        self._bodiless = self._has_no_body(status)
        if head.declared_length is not None:
            framing = b"content-length: %d\r\n" % head.declared_length
        elif self._bodiless:
            pass
        elif self.http_version == "1.0":
            closes = True
        else:
            self._chunked = True
            framing = _CHUNKED
        self._answer_closes = closes
        self._head = b"%b%b%b\r\n" % (head.lines, framing, self._connection_line(head, closes))
        self._connection.loop.call_soon(self._flush)

    def write(self, data: bytes) -> None:
        if not data or self.disconnected or self.ended:
            return
        if not self.answered:
            raise RuntimeError("the answer has not begun")
        pending = self._pending
        pending.append(data)
        self._pending_size += len(data)
        if self._pending_size > WRITE_BUFFER:
            self._flush()
        elif len(pending) == 1 and self.sent:
            self._connection.loop.call_soon(self._flush)

    async def drained(self) -> None:
        if self.disconnected:
            raise ClientDisconnectedError
        if self._connection.writable is not None:
            await asyncio.shield(self._connection.writable)
            if self.disconnected:
                raise ClientDisconnectedError

    def finish(self) -> None:
        if not self.answered:
            raise RuntimeError("the answer has not begun")
        if self.disconnected or self.ended:
            return
        self._flush(last=True)
        if self.disconnected:
            return
        if self._left and not self._bodiless:
            logger.error("the answer to %s ended %d bytes before its content-length", self.path, self._left)
            self.abort()
        else:
            self._end(self._answer_closes or not self._body_ended)

    def abort(self) -> None:
        if not self.disconnected and not self.ended:
            if self.answered:
                self._flush()
            self.ended = True
            self._callbacks = None
            self._connection.close()

    def _flush(self, *, last: bool = False) -> None:
        pending = self._pending
        if self.disconnected or self.ended or not (pending or last or not self.sent):
            return
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        self._pending = []
        self._pending_size = 0
        if self._bodiless:
            data = b""
        elif self._chunked:
            end = _LAST_CHUNK if last else b""
            data = b"%x\r\n%b\r\n%b" % (len(data), data, end) if data else end
        elif self._left is not None:
            if len(data) > self._left:
                logger.error("the answer to %s is longer than its content-length", self.path)
                self.abort()
                return
            self._left -= len(data)
        if not self.sent:
            self.sent = True
            data = self._head + data
        # A transport that failed says so to the connection only in the next turn of the loop.
        if data and not self._connection.transport.is_closing():
            self._connection.transport.write(data)

    def _has_no_body(self, status: int) -> bool:
        return status in (204, 304) or self.method == "HEAD"

    def _closes(self, head: Head) -> bool:
        return head.close or not self._keep_alive or self._connection.server.draining

    def _connection_line(self, head: Head, closes: bool) -> bytes:
        if closes:
            return _CLOSE
        return _KEEP_ALIVE if head.keep_alive or self.http_version == "1.0" else b""

    def _end(self, closes: bool) -> None:
        self.ended = True
        self._callbacks = None
        self._connection.answered(self, close=closes, body_ended=self._body_ended)

    # The client's leaving.

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        if self.disconnected:
            callback()
        elif self.ended:
            pass
        elif self._callbacks is None:
            self._callbacks = [callback]
        else:
            self._callbacks.append(callback)

    def lose(self) -> None:
        """The client is gone, or what it sends cannot be understood any more."""
        if self.ended or self.disconnected:
            return
        self.disconnected = True
        self._wake()
        callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                logger.exception("a callback for a client that left failed")


def _address(name: object) -> tuple[str, int] | None:
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) and len(name) >= 2 else None
