"""A small HTTP/1.1 client: connections that stay open, deadlines, bounded answers.

It speaks to few hosts, follows no redirects, keeps no cookies and streams nothing.
"""

import asyncio
import ipaddress
import logging
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger("cupola_agent")

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 256 * 1024 * 1024
CONNECT_SECONDS = 10.0
IDLE_SECONDS = 30.0
MAX_IDLE = 16


class HttpFailed(Exception):
    """No whole answer came: no connection, a broken one, a deadline, or an answer beyond its bounds."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """An answer with its whole body. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection goes to."""

    secure: bool
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Raises ValueError unless the URL is http or https, with a host and without a user."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise ValueError(f"not an http(s) URL: {url!r}")
        secure = parts.scheme == "https"
        return cls(secure, parts.hostname, parts.port or (443 if secure else 80))

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"

    @property
    def confidential(self) -> bool:
        """Whether what is sent there can be read on the way by nobody: TLS, or this machine's own loopback."""
        return self.secure or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpClient:
    """Keeps up to 16 idle connections to each origin. Used by one event loop at a time."""

    def __init__(self, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_body_bytes = max_body_bytes
        self._idle: dict[Origin, list[_Connection]] = {}
        self._tls: asyncio.Task[ssl.SSLContext] | None = None
        self._closed = False

    async def request(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"", *, timeout: float
    ) -> HttpAnswer:
        """Raises HttpFailed unless a whole answer, of whatever status, comes within `timeout` seconds."""
        origin = Origin.of(url)
        head = _request_head(method, url, origin, headers, body)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    connection = self._reusable(origin)
                    reused = connection is not None
                    if connection is None:
                        connection = await self._connect(origin)
                    try:
                        answer = await connection.exchange(head, body)
                    except _NothingCame:
                        # The server had closed an idle connection while the request was on its way.
                        if not reused:
                            raise HttpFailed(f"{origin.host} closed the connection") from None
                    else:
                        self._keep(origin, connection)
                        return answer
        except TimeoutError:
            raise HttpFailed(f"{origin.host} did not answer within {timeout:g} s") from None

    async def close(self) -> None:
        """Closes the idle connections; one in use is closed when its answer is there."""
        self._closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()
        if self._tls is not None:
            self._tls.cancel()
            await asyncio.wait((self._tls,))

    def _reusable(self, origin: Origin) -> "_Connection | None":
        connections = self._idle.get(origin, [])
        oldest = time.monotonic() - IDLE_SECONDS
        while connections:
            connection = connections.pop()
            if connection.loop is not asyncio.get_running_loop():
                continue  # its loop has ended, and the connection with it
            if connection.open and connection.idle_since > oldest:
                return connection
            connection.close()
        return None

    def _keep(self, origin: Origin, connection: "_Connection") -> None:
        connections = self._idle.setdefault(origin, [])
        if self._closed or not connection.open or len(connections) >= MAX_IDLE:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        connections.append(connection)

    async def _connect(self, origin: Origin) -> "_Connection":
        loop = asyncio.get_running_loop()
        context = await self._tls_context() if origin.secure else None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._max_body_bytes), origin.host, origin.port, ssl=context
                )
        except OSError as error:
            raise HttpFailed(f"no connection to {origin.host}: {error}") from error
        return connection

    async def _tls_context(self) -> "ssl.SSLContext":
        """Reading the authorities takes tens of milliseconds: once, in a thread. `SSL_CERT_FILE` names others."""
        if self._tls is None or self._tls.cancelled() or (self._tls.done() and self._tls.exception() is not None):
            import ssl

            self._tls = asyncio.create_task(asyncio.to_thread(ssl.create_default_context))
        return await asyncio.shield(self._tls)


class _NothingCame(Exception):
    """The connection ended before the first byte of an answer."""


@dataclass(slots=True)
class _Exchange:
    """One answer as it comes in."""

    done: asyncio.Future[HttpAnswer]
    headers: dict[str, str] = field(default_factory=dict)
    head_bytes: int = 0
    body: bytearray = field(default_factory=bytearray)
    began: bool = False
    ends_with_connection: bool = False


class _Connection(asyncio.Protocol):
    """One connection, with at most one request on it."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: _Exchange | None = None
        self.loop = asyncio.get_running_loop()
        self.idle_since = 0.0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def exchange(self, head: bytes, body: bytes) -> HttpAnswer:
        if not self.open or self._transport is None:
            raise _NothingCame
        self._parser = httptools.HttpResponseParser(self)
        self._exchange = _Exchange(self.loop.create_future())
        try:
            self._transport.writelines((head, body) if body else (head,))
            return await self._exchange.done
        except BaseException:
            self.close()  # the rest of the answer must not be taken for the next one
            raise
        finally:
            self._exchange = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.done.done():
            self.close()  # nobody asked
            return
        exchange.began = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(HttpFailed(f"not HTTP: {error}"))

    def eof_received(self) -> None:
        return

    def connection_lost(self, error: Exception | None) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        if not exchange.began:
            self._fail(_NothingCame())
        elif error is None and exchange.ends_with_connection:
            self._complete(exchange)
        else:
            self._fail(HttpFailed(f"the answer broke off: {error or 'connection closed'}"))

    # httptools

    def on_message_begin(self) -> None:
        if self._exchange is None or self._exchange.done.done():
            self.close()  # more than was asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.done.done():
            return
        exchange.head_bytes += len(name) + len(value)
        if exchange.head_bytes > MAX_HEAD_BYTES:
            self._fail(HttpFailed("the head of the answer is too large"))
            return
        exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.done.done():
            length_known = "content-length" in exchange.headers or "transfer-encoding" in exchange.headers
            exchange.ends_with_connection = not length_known and self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        exchange = self._exchange
        if exchange is None or exchange.done.done():
            return
        exchange.body += body
        if len(exchange.body) > self._max_body_bytes:
            exchange.body.clear()
            self._fail(HttpFailed("the answer is too large"))

    def on_message_complete(self) -> None:
        exchange = self._exchange
        if exchange is None or exchange.done.done():
            return
        if self._parser.get_status_code() < 200:
            exchange.headers.clear()
            return
        if not self._parser.should_keep_alive():
            self.close()
        self._complete(exchange)

    def _complete(self, exchange: _Exchange) -> None:
        try:
            body = _decoded(bytes(exchange.body), exchange.headers.get("content-encoding", ""), self._max_body_bytes)
        except (zlib.error, ValueError) as error:
            self._fail(HttpFailed(f"the answer cannot be decoded: {error}"))
        else:
            exchange.done.set_result(HttpAnswer(self._parser.get_status_code(), exchange.headers, body))

    def _fail(self, error: Exception) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.done.done():
            exchange.done.set_exception(error)
        self.close()


def _decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """The body as it was before a gateway compressed it, which it may do unasked."""
    if not body or encoding.strip().lower() in ("", "identity"):
        return body
    if encoding.strip().lower() not in ("gzip", "deflate"):
        raise ValueError(f"unknown content-encoding {encoding!r}")
    decompressor = zlib.decompressobj(wbits=47)
    plain = decompressor.decompress(body, limit)
    if decompressor.unconsumed_tail or not decompressor.eof:
        raise ValueError("too large, or cut off")
    return plain


def _request_head(method: str, url: str, origin: Origin, headers: Mapping[str, str], body: bytes) -> bytes:
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    fields: dict[str, Any] = {"host": origin.host_header, "accept-encoding": "identity", **headers}
    if body or method in ("POST", "PUT", "PATCH"):
        fields["content-length"] = len(body)
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if any(sign in line for line in lines for sign in "\r\n\0"):
        raise ValueError("a header of a request may not have line breaks")
    return "\r\n".join((*lines, "", "")).encode("latin-1", errors="replace")
