"""Serves an application on listening sockets, and ends in good order (contract section 1.4)."""

import asyncio
import logging
import socket
import sys
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from cupola_agent.access import record_access
from cupola_agent.exchange import Application, ClientDisconnectedError, SocketClosedError
from cupola_agent.server.connection import Connection
from cupola_agent.server.http_exchange import HttpExchange

if TYPE_CHECKING:
    from cupola_agent.server.websocket import WebSocket  # loads the framing, which only the first upgrade needs

LAST_ANSWERS_SECONDS = 0.25
"""Time for platforms to be told that this process is going, before they find nobody listening."""
STOP_SECONDS = 15.0
"""Time that the application has at least for its own end."""
CANCEL_SECONDS = 5.0
_SWEEP_SECONDS = 1.0
_BACKLOG = 2048

logger = logging.getLogger("cupola_agent.server")


class StartFailedError(Exception):
    """The application could not start, and says why."""


class Server:
    """One application on any number of sockets. `start` once, then `stop` once.

    `grace_seconds` is what requests in flight have to end after `stop`; `ping_seconds` the time between pings on
    WebSockets, 0 for none.
    """

    def __init__(self, application: Application, *, grace_seconds: float = 30, ping_seconds: float = 0) -> None:
        self.application = application
        self.ping_seconds = ping_seconds
        self.draining = False
        self.connections: set[Connection] = set()
        self._grace_seconds = grace_seconds
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.Server] = []
        self._next_sweep: asyncio.TimerHandle | None = None
        self._changed = asyncio.Event()

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Starts the application and then listens. Raises whatever the application's start raises."""
        self.loop = asyncio.get_running_loop()
        await self.application.start()
        for listener in sockets:
            self._listeners.append(
                await self.loop.create_server(lambda: Connection(self), sock=listener, backlog=_BACKLOG)
            )

    async def stop(self, hurry: asyncio.Event) -> None:
        """Lets what runs end, in the time it has; `hurry` cuts that time short. Then ends the application."""
        self.draining = True
        self.application.drain()
        await self._until(hurry, LAST_ANSWERS_SECONDS)
        for listener in self._listeners:
            listener.close()
        for connection in tuple(self.connections):
            connection.close_when_idle()
        if not await self._until(hurry, self._grace_seconds, idle=True) and self._tasks:
            logger.warning("%d requests did not end in time and are cut", len(self._tasks))
        for connection in tuple(self.connections):
            connection.cut()
        await self._cancel_tasks()
        await self._stop_application(hurry)
        if self._next_sweep is not None:
            self._next_sweep.cancel()

    async def _until(self, hurry: asyncio.Event, seconds: float, *, idle: bool = False) -> bool:
        """Whether everything ended before the time was over."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        hurried = asyncio.create_task(hurry.wait())
        try:
            while not (idle and not self._tasks and not self.connections):
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                try:
                    left = end - loop.time()
                    if left <= 0 or hurried.done():
                        return False
                    await asyncio.wait((changed, hurried), timeout=left, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
        finally:
            hurried.cancel()
        return True

    async def _cancel_tasks(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
            if pending:
                logger.warning("%d requests do not end even when cancelled", len(pending))

    async def _stop_application(self, hurry: asyncio.Event) -> None:
        stopping = asyncio.create_task(self.application.stop())
        hurried = asyncio.create_task(hurry.wait())
        limit = max(STOP_SECONDS, self._grace_seconds)
        try:
            await asyncio.wait((stopping, hurried), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not stopping.done():
                stopping.cancel()
                await asyncio.wait((stopping,), timeout=CANCEL_SECONDS)
        finally:
            hurried.cancel()
        if stopping.done() and not stopping.cancelled() and stopping.exception() is not None:
            logger.error("the application's end failed", exc_info=stopping.exception())
        elif not stopping.done() or stopping.cancelled():
            logger.warning("the application did not end in time")

    # Requests.

    def begin(self, exchange: HttpExchange) -> None:
        self._own(self._answer(exchange))

    def begin_socket(self, websocket: "WebSocket") -> None:
        self._own(self._talk(websocket))

    def _own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if sys.version_info >= (3, 12):
            task = asyncio.Task(coroutine, loop=self.loop, eager_start=True)
            if task.done():
                return
        else:
            task = self.loop.create_task(coroutine)
        self._tasks.add(task)

    async def _answer(self, exchange: HttpExchange) -> None:
        began = perf_counter()
        try:
            await self.application.answer(exchange)
            if not exchange.ended and not exchange.disconnected:
                raise RuntimeError("the application left the answer incomplete")
        except ClientDisconnectedError:
            exchange.abort()
        except Exception:
            self._answer_failed(exchange)
        finally:
            self._ended()
            outcome = "" if exchange.ended else "client left"
            record_access(
                exchange.method, exchange.path, exchange.status, perf_counter() - began, exchange.headers, outcome
            )

    def _answer_failed(self, exchange: HttpExchange) -> None:
        reference = _reference()
        logger.exception("%s %s failed in the application [%s]", exchange.method, exchange.path, reference)
        if exchange.answered:
            exchange.abort()
        else:
            body = f'{{"error":{{"code":"server_error","message":"Internal server error {reference}"}}}}'.encode()
            exchange.respond(500, ((b"content-type", b"application/json"),), body)

    async def _talk(self, websocket: "WebSocket") -> None:
        try:
            await self.application.talk(websocket)
            await websocket.end(1000, "")
        except SocketClosedError:
            logger.debug("a WebSocket was closed while the application used it")
        except Exception:
            reference = _reference()
            logger.exception("the WebSocket %s failed in the application [%s]", websocket.path, reference)
            await websocket.end(1011, "Internal server error")
        finally:
            self._ended()

    def _ended(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.discard(task)
        if self.draining:
            self._changed.set()

    # Connections.

    def connection_made(self, connection: Connection) -> None:
        self.connections.add(connection)
        if self._next_sweep is None:
            self._sweep_later()

    def connection_lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        if self.draining:
            self._changed.set()

    def _sweep_later(self) -> None:
        self._next_sweep = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """One timer for all connections: a timer of its own would cost each request more than its parsing."""
        now = self.loop.time()
        late = now - self._next_sweep.when() if self._next_sweep is not None else 0.0
        self._next_sweep = None
        for connection in tuple(self.connections):
            if late > _SWEEP_SECONDS:
                # The whole process stood still, frozen or busy: that was not the clients' time.
                connection.deadline += late
            elif connection.deadline <= now:
                connection.expire()
        if self.connections:
            self._sweep_later()


def _reference() -> str:
    import secrets

    return secrets.token_hex(8)
