"""An HTTP/1.1 client for the one peer it talks to: the agent inside a sandbox.

Written for the data path: heads are parsed strictly by llhttp, bodies are handed on as they come with bounded
buffering in both directions, and connections are kept for the next request. A request is never sent twice.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from typing import Self, cast

import httptools

from cupola.sandbox.base import Sandbox

Headers = Sequence[tuple[bytes, bytes]]

BUFFER_LIMIT = 256 * 1024
"""Bytes of a response kept for a reader that is slower than the agent, before the agent is made to wait."""
HEAD_LIMIT = 64 * 1024
IDLE_LIMIT = 1.5
"""Seconds a kept connection may be idle. Well below the shortest keep-alive of common servers (2 s), so that a request
hardly ever meets a connection that is just being closed."""
CONNECT_DEADLINE = 5.0


class AgentConnectionError(Exception):
    """The agent closed or broke the connection, or answered something that is not HTTP."""


class AgentUnreachable(AgentConnectionError):
    """No connection could be made, so nothing of the request was sent and it may be sent elsewhere."""


class Response:
    """A response whose head has arrived. Read the body, or leave the `async with`, which drops the connection.

    `connected` and `answered` are the seconds it took to get a connection and, from then on, the head of the answer.
    """

    def __init__(self, connection: _Connection, client: AgentClient, connected: float, answered: float) -> None:
        self.connected = connected
        self.answered = answered
        self.status = connection.status
        self.headers: Headers = tuple(connection.headers)
        self._connection = connection
        self._client = client

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        return next((value for key, value in self.headers if key == name), None)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises AgentConnectionError when it ends too early."""
        while (chunk := await self._connection.next_chunk()) is not None:
            yield chunk

    async def read(self, limit: int) -> bytes:
        """The whole body, at most `limit` bytes; raises AgentConnectionError when it is larger."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self.chunks():
            size += len(chunk)
            if size > limit:
                raise AgentConnectionError(f"the answer is larger than {limit} bytes")
            parts.append(chunk)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Send bytes after a status of 101, when both ends speak something else; waits while the agent is slow to read.

        Raises AgentConnectionError.
        """
        await self._connection.write(data)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.give_back(self._connection)


class AgentClient:
    """Connections to one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._idle: deque[_Connection] = deque()

    async def request(
        self, method: bytes, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes] = b""
    ) -> Response:
        """Send a request and wait for the head of its answer, however long the agent takes.

        `headers` must hold everything but Host, Content-Length and Transfer-Encoding of an iterated body; a body in
        pieces is sent in chunks. With an Upgrade header the answer may be 101: its chunks are then whatever the agent sends
        until it closes the connection. Raises AgentConnectionError.
        """
        began = time.perf_counter()
        connection = self._take_idle() or await self._connect()
        connected = time.perf_counter()
        try:
            await connection.send(method, target, headers, body)
        except BaseException:
            connection.abort()
            raise
        return Response(connection, self, connected - began, time.perf_counter() - connected)

    async def adopt(self, connected: socket.socket) -> None:
        """Keep an already connected socket for the next request."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, sock=connected)
        self.give_back(connection)

    def give_back(self, connection: _Connection) -> None:
        """Keep a connection whose last answer was read to its end; drop any other."""
        if connection.reusable:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.drop()

    def close(self) -> None:
        """Drop the kept connections."""
        while self._idle:
            self._idle.pop().abort()

    def _take_idle(self) -> _Connection | None:
        oldest = asyncio.get_running_loop().time() - IDLE_LIMIT
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.idle_since > oldest:
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        opened: socket.socket | None = None
        try:
            async with asyncio.timeout(CONNECT_DEADLINE):
                opened = self._sandbox.open_socket()
                await loop.sock_connect(opened, self._sandbox.address)
                _, connection = await loop.create_connection(_Connection, sock=opened)
        except BaseException as error:
            if opened is not None:
                opened.close()
            if isinstance(error, OSError):
                raise AgentUnreachable(f"the agent does not accept connections on its port: {error}") from error
            raise
        return connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reset()
        self._lost: Exception | None = None
        self._pristine = True
        self._spent = False

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._head_size = 0
        self._paused = False
        self._headed = False
        self._complete = False
        self._keep_alive = False
        self._until_close = False
        self._may_upgrade = False
        self._upgraded = False
        self._wake: asyncio.Future[None] | None = None

    @property
    def reusable(self) -> bool:
        transport = self._transport
        if transport is None or transport.is_closing() or self._lost is not None or self._spent:
            return False
        return self._pristine or (self._complete and not self._chunks and self._keep_alive)

    def drop(self) -> None:
        """Close the connection, after what was sent if it does not speak HTTP any more: that has no end of its own."""
        if self._upgraded and self._transport is not None:
            self._transport.close()
        else:
            self.abort()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def send(self, method: bytes, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]) -> None:
        """Write the request and return when the final head of the answer is here."""
        self._reset()
        self._pristine = False
        self._may_upgrade = any(name == b"upgrade" for name, _ in headers)
        lines = [b"%b %b HTTP/1.1" % (method, target), b"host: agent"]
        if not isinstance(body, bytes):
            lines.append(b"transfer-encoding: chunked")
        elif not self._may_upgrade:
            # Some servers refuse an upgrade that speaks of a body, be it an empty one.
            lines.append(b"content-length: %d" % len(body))
        lines += [b"%b: %b" % header for header in headers]
        head = b"\r\n".join(lines) + b"\r\n\r\n"
        if isinstance(body, bytes):
            self._write(head + body if len(body) < BUFFER_LIMIT else head)
            if len(body) >= BUFFER_LIMIT:
                self._write(body)
            await self._head()
            return
        self._write(head)
        sending = asyncio.ensure_future(self._send_chunks(body))
        try:
            waiting = asyncio.ensure_future(self._head())
            # An agent may answer before it has read the whole body: whichever comes first decides.
            await asyncio.wait({sending, waiting}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not waiting.done():
                sending.result()
            await waiting
        finally:
            waiting.cancel()
            if not sending.done():
                # The rest of the body was not read, so this connection cannot carry another request.
                sending.cancel()
                self._spent = True
            await asyncio.gather(sending, waiting, return_exceptions=True)

    async def _send_chunks(self, body: AsyncIterator[bytes]) -> None:
        async for chunk in body:
            if chunk:
                await self.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
                if self._lost is not None:
                    return
        self._write(b"0\r\n\r\n")

    async def write(self, data: bytes) -> None:
        self._write(data)
        await self._writable.wait()

    def _write(self, data: bytes) -> None:
        if self._transport is None or self._lost is not None:
            raise AgentConnectionError("the agent closed the connection")
        self._transport.write(data)

    async def _head(self) -> None:
        while not self._headed:
            await self._wait()

    async def next_chunk(self) -> bytes | None:
        while not self._chunks:
            if self._complete:
                return None
            await self._wait()
        chunk = self._chunks.popleft()
        self._buffered -= len(chunk)
        if self._paused and self._buffered < BUFFER_LIMIT // 2 and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return chunk

    async def _wait(self) -> None:
        if self._lost is not None:
            raise self._lost
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        # Counts what comes without any of the body: heads, and what may follow a chunked body.
        if self._upgraded:
            self.on_body(data)
        else:
            self._head_size += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if not self._upgraded:
                    self._fail(AgentConnectionError("the agent's answer is not HTTP: it changed the protocol unasked"))
                    return
                if rest := data[upgrade.args[0] :]:
                    self.on_body(rest)
            except httptools.HttpParserError as error:
                self._fail(AgentConnectionError(f"the agent's answer is not HTTP: {error}"))
                return
        if not self._complete and self._head_size > HEAD_LIMIT:
            self._fail(AgentConnectionError(f"the head of the agent's answer is larger than {HEAD_LIMIT} bytes"))
            return
        if self._buffered > BUFFER_LIMIT and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._notify()

    def _fail(self, error: AgentConnectionError) -> None:
        self._lost = self._lost or error
        self.abort()
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._headed and self._until_close:
            self._complete = True
        self._lost = self._lost or AgentConnectionError(
            "the agent closed the connection before its answer was complete"
        )
        self._writable.set()
        self._notify()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._complete:
            raise AgentConnectionError("the agent sent an answer that was not asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:
            self.headers.append((name.lower(), value.strip()))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if not 100 <= self.status <= 599:
            raise AgentConnectionError(f"its status is {self.status}")
        if self.status == 101 and self._may_upgrade:
            self._upgraded = self._headed = self._until_close = True
            return
        if self.status < 200:
            self.headers.clear()
            return
        self._headed = True
        names = {name for name, _ in self.headers}
        bodiless = self.status in (204, 304)
        self._until_close = not bodiless and b"content-length" not in names and b"transfer-encoding" not in names

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)
        self._head_size = 0

    def on_message_complete(self) -> None:
        if self._headed and not self._upgraded:
            self._complete = True
            # Only now: the parser forgets what the head said once it is done with a message.
            self._keep_alive = self._parser.should_keep_alive()
