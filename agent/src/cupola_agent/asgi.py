"""An application of ours as an ASGI app: under another server, or mounted in Starlette or FastAPI."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from cupola_agent.access import record_access
from cupola_agent.exchange import (
    MAX_BODY,
    Application,
    BodyTooLargeError,
    ClientDisconnectedError,
    HeaderPairs,
    SocketClosedError,
)
from cupola_agent.server.heads import render

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BUFFER = 256 * 1024
_WRITE_BUFFER = 64 * 1024

logger = logging.getLogger("cupola_agent.asgi")

_starts: WeakKeyDictionary[Application, asyncio.Future[None]] = WeakKeyDictionary()


async def serve_asgi(application: Application, scope: Scope, receive: Receive, send: Send) -> None:
    """One ASGI connection. An application whose lifespan nobody runs, as when it is mounted, is started by its first."""
    kind = scope["type"]
    if kind == "lifespan":
        await _lifespan(application, receive, send)
        return
    await _started(application)
    if kind == "http":
        await AsgiExchange(scope, receive, send).serve(application)
    elif kind == "websocket":
        await _talk(application, AsgiSocket(scope, receive, send))
    else:
        raise ValueError(f"{kind!r} is not known to this application")


async def _started(application: Application) -> None:
    start = _starts.get(application)
    if start is None:
        start = _starts[application] = asyncio.ensure_future(application.start())
    try:
        await asyncio.shield(start)
    except Exception:
        _starts.pop(application, None)  # the next request tries again
        raise


async def _lifespan(application: Application, receive: Receive, send: Send) -> None:
    await receive()
    try:
        await _started(application)
    except Exception as error:
        logger.exception("the application failed to start")
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    try:
        application.drain()
        await application.stop()
    except Exception as error:
        logger.exception("the application failed to stop")
        await send({"type": "lifespan.shutdown.failed", "message": str(error)})
    else:
        await send({"type": "lifespan.shutdown.complete"})
    finally:
        _starts.pop(application, None)


def _headers(scope: Scope) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _path(scope: Scope) -> str:
    """The path below the prefix that the application is mounted at."""
    path, prefix = str(scope["path"]), str(scope.get("root_path", ""))
    if prefix and path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/"):
        return path[len(prefix) :] or "/"
    return path


class AsgiExchange:
    """Implements `exchange.Exchange`. `write` never waits, so the messages go through a buffer to the server.

    An answer that is aborted is left without its end, which makes the server cut the connection.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method = str(scope["method"])
        self.path = _path(scope)
        self.query_string = bytes(scope.get("query_string", b""))
        self.headers: Mapping[str, str] = _headers(scope)
        self.answered = False
        self.disconnected = False
        self.ended = False
        self.status = 0
        self._receive = receive
        self._send = send
        self._body: deque[bytes] = deque()
        self._body_size = 0
        self._body_limit = _BUFFER
        self._body_ended = False
        self._body_changed = asyncio.Event()
        self._body_room = asyncio.Event()
        self._outbox: list[Message] = []
        self._outbox_size = 0
        self._outbox_filled = asyncio.Event()
        self._outbox_emptied = asyncio.Event()
        self._callbacks: list[Callable[[], None]] = []

    async def serve(self, application: Application) -> None:
        """Has the application answer, while what it writes is sent and the client is watched."""
        answering = asyncio.create_task(self._answer(application))
        answering.add_done_callback(lambda _: self._outbox_filled.set())
        reading = asyncio.create_task(self._read())
        try:
            while not answering.done() or self._outbox:
                await self._outbox_filled.wait()
                self._outbox_filled.clear()
                await self._send_outbox()
            await answering
        finally:
            answering.cancel()
            reading.cancel()
            await asyncio.gather(answering, reading, return_exceptions=True)

    async def _answer(self, application: Application) -> None:
        began = perf_counter()
        try:
            await application.answer(self)
        finally:
            outcome = "" if self.ended else "client left" if self.disconnected else "cut"
            record_access(self.method, self.path, self.status, perf_counter() - began, self.headers, outcome)

    async def _send_outbox(self) -> None:
        while self._outbox:
            messages, self._outbox, self._outbox_size = self._outbox, [], 0
            try:
                for message in messages:
                    await self._send(message)
            except OSError:
                self._lose()
        self._outbox_emptied.set()

    # The body of the request.

    async def body(self) -> bytes:
        self._body_limit = MAX_BODY
        self._body_room.set()
        while not self._body_ended:
            await self._more_body()
        if self._body_size > MAX_BODY:
            raise BodyTooLargeError
        return b"".join(self._body)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            if self._body:
                part = self._body.popleft()
                self._body_size -= len(part)
                self._body_room.set()
                yield part
            elif self._body_ended:
                return
            else:
                await self._more_body()

    async def _more_body(self) -> None:
        if self._body_size > MAX_BODY:
            raise BodyTooLargeError
        if self.disconnected:
            raise ClientDisconnectedError
        self._body_changed.clear()
        await self._body_changed.wait()
        if self.disconnected and not self._body_ended:
            raise ClientDisconnectedError

    async def _read(self) -> None:
        """Takes the body, and then waits for the client to leave."""
        while True:
            while self._body_size > self._body_limit:
                self._body_room.clear()
                await self._body_room.wait()
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._lose()
                return
            part = message.get("body", b"")
            if part:
                self._body.append(part)
                self._body_size += len(part)
            self._body_ended = self._body_ended or not message.get("more_body", False)
            self._body_changed.set()

    # The answer.

    def respond(self, status: int, headers: HeaderPairs, body: bytes) -> None:
        plain = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        if status != 204:
            plain.append((b"content-length", b"%d" % len(body)))
        self.start(status, plain)
        self.write(body)
        self.finish()

    def start(self, status: int, headers: HeaderPairs) -> None:
        if self.answered:
            raise RuntimeError("the answer has begun already")
        render(status, headers)  # raises for what cannot be sent
        self.answered = True
        self.status = status
        self._put({"type": "http.response.start", "status": status, "headers": list(headers)}, 0)

    def write(self, data: bytes) -> None:
        if data and not self._has_no_body:
            self._put({"type": "http.response.body", "body": data, "more_body": True}, len(data))

    async def drained(self) -> None:
        while self._outbox_size > _WRITE_BUFFER and not self.disconnected:
            self._outbox_emptied.clear()
            await self._outbox_emptied.wait()
        if self.disconnected:
            raise ClientDisconnectedError

    def finish(self) -> None:
        self._put({"type": "http.response.body", "body": b"", "more_body": False}, 0)
        self.ended = True
        self._callbacks.clear()

    def abort(self) -> None:
        self.ended = True
        self._callbacks.clear()

    def _put(self, message: Message, size: int) -> None:
        if not self.answered:
            raise RuntimeError("the answer has not begun")
        if self.disconnected or self.ended:
            return
        self._outbox.append(message)
        self._outbox_size += size
        self._outbox_filled.set()

    @property
    def _has_no_body(self) -> bool:
        return self.status in (204, 304) or self.method == "HEAD"

    # The client's leaving.

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        if self.disconnected:
            callback()
        elif not self.ended:
            self._callbacks.append(callback)

    def _lose(self) -> None:
        if self.ended or self.disconnected:
            return
        self.disconnected = True
        self._outbox.clear()
        self._outbox_emptied.set()
        self._body_changed.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class AsgiSocket:
    """Implements `exchange.Socket`."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path = _path(scope)
        self.query_string = bytes(scope.get("query_string", b""))
        self.headers: Mapping[str, str] = _headers(scope)
        self.accepted = False
        self._receive = receive
        self._send = send
        self._code = 0

    async def reject(self, status: int) -> None:
        """ASGI has one refusal only: its servers answer it with 403, whatever `status` is."""
        self._code = 1006
        await self._send({"type": "websocket.close", "code": 1000})

    async def accept(self, headers: HeaderPairs = ()) -> None:
        message = await self._receive()
        if message["type"] != "websocket.connect":
            self._code = message.get("code") or 1006
            raise SocketClosedError(self._code)
        self.accepted = True
        await self._tell({"type": "websocket.accept", "headers": list(headers)})

    async def receive(self) -> str | bytes:
        if self._code:
            raise SocketClosedError(self._code)
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self._code = message.get("code") or 1005
            raise SocketClosedError(self._code)
        text = message.get("text")
        return bytes(message["bytes"]) if text is None else str(text)

    async def send(self, message: str | bytes) -> None:
        if self._code:
            raise SocketClosedError(self._code)
        await self._tell({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self._code:
            return
        try:
            await self._tell({"type": "websocket.close", "code": code, "reason": reason})
        except SocketClosedError:
            return
        self._code = code

    async def _tell(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self._code = 1006
            raise SocketClosedError(self._code) from None


async def _talk(application: Application, socket: AsgiSocket) -> None:
    try:
        await application.talk(socket)
    except SocketClosedError:
        return
    except Exception:
        logger.exception("the WebSocket %s failed in the application", socket.path)
        await socket.close(1011, "Internal server error")
        return
    if socket.accepted:
        await socket.close()
    else:
        await socket.reject(403)
