"""Calls an agent in-process, without a socket: `await TestClient(agent).post("/responses", json={...})`."""

import asyncio
import json as jsonlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from cupola_agent.access import flush_access, record_access
from cupola_agent.exchange import (
    MAX_BODY,
    Application,
    BodyTooLargeError,
    ClientDisconnectedError,
    HeaderPairs,
    SocketClosedError,
)
from cupola_agent.server.heads import render


@dataclass(frozen=True, slots=True)
class TestResponse:
    """A complete answer. `chunks` are the pieces of the body as they were sent."""

    __test__ = False

    status: int
    headers: Mapping[str, str]
    chunks: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return jsonlib.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        """The server-sent events of the body as (event, data)."""
        return [parse_event(frame) for frame in self.text.split("\n\n") if frame and not frame.startswith(":")]


class TestStream:
    """An answer that is being received. `chunks` gives the pieces of its body as they arrive."""

    __test__ = False

    def __init__(self, exchange: "_Exchange") -> None:
        self._exchange = exchange
        self.status = exchange.status
        self.headers = exchange.response_headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """The rest of the body. Raises ConnectionError when the answer breaks off."""
        while (piece := await self._exchange.next_piece()) is not None:
            yield piece

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """The server-sent events to come, as (event, data)."""
        text = ""
        async for chunk in self.chunks():
            *frames, text = (text + chunk.decode()).split("\n\n")
            for frame in frames:
                if not frame.startswith(":"):
                    yield parse_event(frame)


class TestWebSocket:
    """The client's side of a WebSocket."""

    __test__ = False

    def __init__(self, socket: "_Socket") -> None:
        self._socket = socket
        self.headers = socket.response_headers

    async def send(self, message: str | bytes) -> None:
        """Raises SocketClosedError when the agent has closed."""
        if self._socket.closed_by_agent is not None:
            raise SocketClosedError(self._socket.closed_by_agent)
        self._socket.to_agent.put_nowait(message)

    async def send_json(self, value: Any) -> None:
        await self.send(jsonlib.dumps(value))

    async def receive(self) -> str | bytes:
        """The next message. Raises SocketClosedError when the agent has closed."""
        message = await self._socket.from_agent.get()
        if isinstance(message, int):
            self._socket.from_agent.put_nowait(message)
            raise SocketClosedError(message)
        return message

    async def receive_json(self) -> Any:
        return jsonlib.loads(await self.receive())

    async def close(self, code: int = 1000) -> None:
        self._socket.leave(code)


class UpgradeRefusedError(Exception):
    """The agent refused a WebSocket. `status` is what it answered."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upgrade was refused with {status}")
        self.status = status


class TestClient:
    """Sends requests to an agent. As a context manager it also starts and stops the agent."""

    __test__ = False

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __aenter__(self) -> Self:
        await self._application.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._application.drain()
        await self._application.stop()

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> TestResponse:
        return await self.request("GET", path, headers=headers)

    async def delete(self, path: str, *, headers: Mapping[str, str] | None = None) -> TestResponse:
        return await self.request("DELETE", path, headers=headers)

    async def post(
        self, path: str, *, json: Any = None, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        return await self.request("POST", path, json=json, content=content, headers=headers)

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> TestResponse:
        """The complete answer. Raises ConnectionError when it breaks off."""
        async with self.stream(method, path, json=json, content=content, headers=headers) as stream:
            chunks = [chunk async for chunk in stream.chunks()]
            return TestResponse(stream.status, stream.headers, tuple(chunks))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[TestStream]:
        """The answer from its head on. Leaving the block before its end disconnects the client."""
        sent = _lower(headers)
        if json is not None:
            content = jsonlib.dumps(json).encode()
            sent.setdefault("content-type", "application/json")
        exchange = _Exchange(method, path, sent, content)
        task = asyncio.create_task(exchange.run(self._application))
        try:
            await exchange.head()
            yield TestStream(exchange)
        finally:
            exchange.leave()
            await task

    @asynccontextmanager
    async def websocket(self, path: str, *, headers: Mapping[str, str] | None = None) -> AsyncIterator[TestWebSocket]:
        """An open WebSocket; leaving the block closes it. Raises UpgradeRefusedError."""
        socket = _Socket(path, _lower(headers))
        task = asyncio.create_task(socket.run(self._application))
        try:
            await socket.opened.wait()
            if socket.refused:
                raise UpgradeRefusedError(socket.refused)
            yield TestWebSocket(socket)
        finally:
            socket.leave(1000)
            await task


class _Exchange:
    """Implements `exchange.Exchange` in memory."""

    def __init__(self, method: str, path: str, headers: Mapping[str, str], content: bytes) -> None:
        target, _, query = path.partition("?")
        self.method = method
        self.path = unquote(target)
        self.query_string = query.encode()
        self.headers = headers
        self.status = 0
        self.response_headers: dict[str, str] = {}
        self.answered = False
        self.disconnected = False
        self._content = content
        self._ended = False
        self._begun = asyncio.Event()
        self._pieces: asyncio.Queue[bytes | ConnectionError | None] = asyncio.Queue()
        self._callbacks: list[Callable[[], None]] = []

    async def run(self, application: Application) -> None:
        began = perf_counter()
        try:
            await application.answer(self)
        finally:
            self.abort()
            record_access(self.method, self.path, self.status, perf_counter() - began, self.headers)
            flush_access()

    async def head(self) -> None:
        await self._begun.wait()
        if not self.answered:
            raise ConnectionError("there was no answer")

    async def next_piece(self) -> bytes | None:
        piece = await self._pieces.get()
        if isinstance(piece, ConnectionError):
            raise piece
        return piece

    def leave(self) -> None:
        """The client goes, whether or not it has the whole answer."""
        if self._ended or self.disconnected:
            return
        self.disconnected = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    async def body(self) -> bytes:
        if len(self._content) > MAX_BODY:
            raise BodyTooLargeError
        return self._content

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        if self._content:
            yield self._content

    def respond(self, status: int, headers: HeaderPairs, body: bytes) -> None:
        plain = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        self.start(status, [*plain, (b"content-length", b"%d" % len(body))] if status != 204 else plain)
        self.write(body)
        self.finish()

    def start(self, status: int, headers: HeaderPairs) -> None:
        if self.answered:
            raise RuntimeError("the answer has begun already")
        render(status, headers)  # raises for what cannot be sent
        self.answered = True
        self.status = status
        self.response_headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
        self._begun.set()

    def write(self, data: bytes) -> None:
        if not self.answered:
            raise RuntimeError("the answer has not begun")
        if (
            data
            and not self.disconnected
            and not self._ended
            and self.method != "HEAD"
            and self.status not in (204, 304)
        ):
            self._pieces.put_nowait(data)

    async def drained(self) -> None:
        await asyncio.sleep(0)  # the test reads as fast as the agent writes
        if self.disconnected:
            raise ClientDisconnectedError

    def finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._pieces.put_nowait(None)

    def abort(self) -> None:
        if not self._ended:
            self._ended = True
            self._begun.set()
            self._pieces.put_nowait(ConnectionError("the answer broke off"))

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        if self.disconnected:
            callback()
        elif not self._ended:
            self._callbacks.append(callback)


class _Socket:
    """Implements `exchange.Socket` in memory."""

    def __init__(self, path: str, headers: Mapping[str, str]) -> None:
        target, _, query = path.partition("?")
        self.path = unquote(target)
        self.query_string = query.encode()
        self.headers = headers
        self.response_headers: dict[str, str] = {}
        self.refused = 0
        self.opened = asyncio.Event()
        self.closed_by_agent: int | None = None
        self.to_agent: asyncio.Queue[str | bytes | int] = asyncio.Queue()
        self.from_agent: asyncio.Queue[str | bytes | int] = asyncio.Queue()
        self._left: int | None = None

    async def run(self, application: Application) -> None:
        try:
            with suppress(SocketClosedError):
                await application.talk(self)
        except BaseException:
            await self.close(1011)
            raise
        finally:
            if self.opened.is_set():
                await self.close()
            else:
                await self.reject(403)

    def leave(self, code: int) -> None:
        if self._left is None and self.closed_by_agent is None:
            self._left = code
            self.to_agent.put_nowait(code)

    async def reject(self, status: int) -> None:
        self.refused = status
        self.opened.set()

    async def accept(self, headers: HeaderPairs = ()) -> None:
        render(200, headers)
        self.response_headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
        self.opened.set()

    async def receive(self) -> str | bytes:
        if self.closed_by_agent is not None:
            raise SocketClosedError(self.closed_by_agent)
        message = await self.to_agent.get()
        if isinstance(message, int):
            self.to_agent.put_nowait(message)
            raise SocketClosedError(message)
        return message

    async def send(self, message: str | bytes) -> None:
        closed = self.closed_by_agent if self._left is None else self._left
        if closed is not None:
            raise SocketClosedError(closed)
        self.from_agent.put_nowait(message)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed_by_agent is None:
            self.closed_by_agent = code
            self.from_agent.put_nowait(code)


def _lower(headers: Mapping[str, str] | None) -> dict[str, str]:
    return {name.lower(): value for name, value in (headers or {}).items()}


def parse_event(frame: str) -> tuple[str, Any]:
    """One server-sent event as (event, data). Raises ValueError when it has another shape."""
    event, data = frame.split("\n")
    if not event.startswith("event: ") or not data.startswith("data: "):
        raise ValueError(f"not an event: {frame!r}")
    return event.removeprefix("event: "), jsonlib.loads(data.removeprefix("data: "))
