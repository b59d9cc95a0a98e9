"""Serves any ASGI 3 app by the library's server: HTTP, WebSocket and lifespan over the seam of `exchange.py`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from cupola_agent.exchange import ClientDisconnectedError, Exchange, Socket, SocketClosedError
from cupola_agent.server.serve import StartFailedError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
AsgiApp = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_STOP_SECONDS = 10.0

logger = logging.getLogger("cupola_agent.server")


class AsgiHost:
    """Implements `exchange.Application` by an ASGI app. Its lifespan is optional, as the specification says."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._state: dict[str, Any] = {}
        self._lifespan: asyncio.Task[None] | None = None
        self._to_lifespan: asyncio.Queue[Message] = asyncio.Queue()
        self._from_lifespan: asyncio.Queue[Message] = asyncio.Queue()

    async def start(self) -> None:
        """Raises StartFailedError."""
        self._lifespan = asyncio.create_task(self._live())
        answer = await self._tell("lifespan.startup")
        if answer["type"] == "lifespan.startup.failed":
            raise StartFailedError(f"the app failed to start: {answer.get('message', '')}")

    def drain(self) -> None:
        """ASGI has no word for it: the app goes on until its connections are done."""

    async def stop(self) -> None:
        if self._lifespan is None or self._lifespan.done():
            return
        await self._tell("lifespan.shutdown")
        await asyncio.wait((self._lifespan,), timeout=_STOP_SECONDS)

    async def _tell(self, kind: str) -> Message:
        await self._to_lifespan.put({"type": kind})
        return await self._from_lifespan.get()

    async def _live(self) -> None:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self._state}
        try:
            await self._app(scope, self._to_lifespan.get, self._from_lifespan.put)
        except Exception as error:
            # Before its first word that means: no lifespan here.
            logger.debug("the app has no lifespan: %r", error)
        await self._from_lifespan.put({"type": "lifespan.ended"})

    async def answer(self, exchange: Exchange) -> None:
        scope = _scope("http", exchange, self._state)
        scope["method"] = exchange.method
        cycle = _HttpCycle(exchange)
        try:
            await self._app(scope, cycle.receive, cycle.send)
        except Exception as error:
            if not cycle.told_that_client_left:
                raise
            logger.debug("the app ended on a client that left: %r", error)
            exchange.abort()

    async def talk(self, socket: Socket) -> None:
        scope = _scope("websocket", socket, self._state)
        offered = socket.headers.get("sec-websocket-protocol", "")
        scope["subprotocols"] = [name.strip() for name in offered.split(",") if name.strip()]
        cycle = _WebSocketCycle(socket)
        await self._app(scope, cycle.receive, cycle.send)


def _scope(kind: str, given: Exchange | Socket, state: Mapping[str, Any]) -> Scope:
    """`client` and `server` are there when the transport of the library's own server tells them."""
    return {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": getattr(given, "http_version", "1.1"),
        "scheme": "http" if kind == "http" else "ws",
        "path": given.path,
        "raw_path": getattr(given, "raw_path", given.path.encode()),
        "query_string": given.query_string,
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.headers.items()],
        "client": getattr(given, "client", None),
        "server": getattr(given, "server", None),
        "state": dict(state),
    }


class _HttpCycle:
    """`receive` and `send` of one request."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._pieces = exchange.chunks()
        self._body_ended = False
        self._over: asyncio.Event | None = None
        self._head: Message = {}
        self.told_that_client_left = False

    async def receive(self) -> Message:
        if not self._body_ended:
            try:
                return {"type": "http.request", "body": await anext(self._pieces), "more_body": True}
            except StopAsyncIteration:
                self._body_ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            except ClientDisconnectedError:
                self._body_ended = True
        if self._over is None:
            self._over = asyncio.Event()
            self._exchange.on_disconnect(self._over.set)
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._head = message
            return
        exchange = self._exchange
        body, more = message.get("body", b""), message.get("more_body", False)
        if not exchange.answered:
            status, headers = self._head["status"], list(self._head.get("headers", ()))
            if not more and exchange.method != "HEAD":
                exchange.respond(status, headers, body)
                self._end()
                return
            exchange.start(status, headers)
        exchange.write(body)
        if not more:
            exchange.finish()
            self._end()
            return
        try:
            await exchange.drained()
        except ClientDisconnectedError:
            self.told_that_client_left = True
            raise OSError("the client has left") from None

    def _end(self) -> None:
        if self._over is not None:
            self._over.set()


class _WebSocketCycle:
    """`receive` and `send` of one WebSocket."""

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._connected = False
        self._accepted = False

    async def receive(self) -> Message:
        if not self._connected:
            self._connected = True
            return {"type": "websocket.connect"}
        try:
            message = await self._socket.receive()
        except SocketClosedError as closed:
            return {"type": "websocket.disconnect", "code": closed.code, "reason": ""}
        return {"type": "websocket.receive", "text" if isinstance(message, str) else "bytes": message}

    async def send(self, message: Message) -> None:
        kind, socket = message["type"], self._socket
        try:
            if kind == "websocket.accept":
                headers = list(message.get("headers", ()))
                if message.get("subprotocol"):
                    headers.append((b"sec-websocket-protocol", message["subprotocol"].encode()))
                self._accepted = True
                await socket.accept(headers)
            elif kind == "websocket.send":
                text = message.get("text")
                await socket.send(message["bytes"] if text is None else text)
            elif kind == "websocket.close" and self._accepted:
                await socket.close(message.get("code") or 1000, message.get("reason") or "")
            elif kind == "websocket.close":
                await socket.reject(403)
        except SocketClosedError:
            raise OSError("the WebSocket is closed") from None
