"""One client's connection: parses requests with httptools (llhttp, strict), answers them one after the other."""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, cast

import httptools

from cupola_agent.server.heads import render
from cupola_agent.server.http_exchange import HttpExchange
from cupola_agent.server.request_head import NAMES, header_name, split_target

if TYPE_CHECKING:
    from cupola_agent.server.serve import Server
    from cupola_agent.server.websocket import WebSocket

MAX_HEAD = 64 * 1024
MAX_HEADERS = 128
IDLE_SECONDS = 75.0
"""An idle connection is kept longer than the pools of usual clients keep theirs, so that it is they who close:
a server that closes first now and then closes on a request that is under way already."""
HEAD_SECONDS = 20.0
BODY_SECONDS = 60.0
"""For each piece of a body that is collected; a body read in chunks may come as slowly as it likes."""
SEND_SECONDS = 30.0
"""For a client to take at least some of what is left when the connection is to be closed."""
LINGER_SECONDS = 2.0
"""After an answer the client may still be sending to; a connection that is closed with unread data loses the answer."""

LINGER_BYTES = 64 * 1024

_NEVER = float("inf")

logger = logging.getLogger("cupola_agent.server")


class Connection(asyncio.Protocol):
    """`deadline` is the loop's time at which `expire` is to be called."""

    __slots__ = (
        "_closing",
        "_current",
        "_head_begun",
        "_headers",
        "_method",
        "_parser",
        "_progress",
        "_queue",
        "_reading",
        "_receiving",
        "_refusal",
        "_resumed",
        "_size",
        "_target",
        "_unsent",
        "_unstarted",
        "_upgrade",
        "_verdict",
        "_without_progress",
        "deadline",
        "loop",
        "server",
        "transport",
        "websocket",
        "writable",
    )

    transport: asyncio.Transport

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.loop = server.loop
        self.writable: asyncio.Future[None] | None = None
        self.websocket: WebSocket | None = None
        self.deadline = _NEVER
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[HttpExchange] = deque()
        self._current: HttpExchange | None = None
        self._receiving: HttpExchange | None = None
        self._unstarted = False
        self._unsent = 0
        self._reading = True
        self._closing = False
        self._refusal = 0
        self._verdict = 0
        self._resumed = False
        self._upgrade = False
        self._headers: dict[str, str] = {}
        self._target = b""
        self._size = 0
        self._head_begun = False
        self._progress = False
        self._without_progress = 0

    @property
    def idle(self) -> bool:
        return self._current is None and self.websocket is None

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.server.connection_made(self)
        self.deadline = self.loop.time() + HEAD_SECONDS

    def data_received(self, data: bytes) -> None:
        if self.websocket is not None:
            self.websocket.data_received(data)
            return
        if self._closing or self._refusal:
            return
        self._progress = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgraded(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._refuse(self._verdict or 400)
            return
        if not self._progress:
            self._without_progress += len(data)
            if self._without_progress > MAX_HEAD:
                self._refuse(431 if self._receiving is None else 400)
                return
        else:
            self._without_progress = 0
        if self._unstarted:
            self._unstarted = False
            self._start()
        elif self._current is None and not self._head_begun:
            self._head_begun = True
            self.deadline = self.loop.time() + HEAD_SECONDS

    def eof_received(self) -> bool:
        """A client that only closes its sending side is taken for one that left: the two look alike."""
        self._lose_all()
        return False

    def connection_lost(self, exception: Exception | None) -> None:
        self._closing = True
        self.deadline = _NEVER
        self._lose_all()
        self.resume_writing()
        self.server.connection_lost(self)

    def _lose_all(self) -> None:
        if self.websocket is not None:
            self.websocket.connection_lost()
        if self._current is not None:
            self._current.lose()
            self._current = None
        self._queue.clear()

    def pause_writing(self) -> None:
        if self.writable is None:
            self.writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self.writable is not None:
            self.writable.set_result(None)
            self.writable = None

    # What the parser tells.

    def on_message_begin(self) -> None:
        if not self._resumed:
            self._headers = {}
            self._target = b""
            self._size = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self._receiving is not None or self._resumed:
            return  # a trailer
        headers = self._headers
        text = NAMES.get(name) or header_name(name)
        if text in headers:
            if text == "host":
                self._stop(400)
            headers[text] += ", " + value.decode("latin-1")
        else:
            headers[text] = value.decode("latin-1")
            if len(headers) > MAX_HEADERS:
                self._stop(431)

    def on_headers_complete(self) -> None:
        self._progress = True
        self._head_begun = False
        if self._resumed:
            self._resumed = False
            return
        parser, headers = self._parser, self._headers
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                self._stop(505)
        elif "host" not in headers:
            self._stop(400)
        if "transfer-encoding" in headers and (version == "1.0" or headers["transfer-encoding"].lower() != "chunked"):
            self._stop(501 if version == "1.1" else 400)
        self._upgrade = parser.should_upgrade()
        method = parser.get_method().decode()
        target = split_target(self._target)
        if method == "CONNECT" or target is None:
            self._stop(400)
            return
        exchange = HttpExchange(self, method, target, headers, version, parser.should_keep_alive())
        self._receiving = exchange
        if self._current is None:
            self._current = exchange
            self._unstarted = True
            self.deadline = _NEVER
        else:
            self._queue.append(exchange)
            self.regulate_reading()

    def on_body(self, body: bytes) -> None:
        self._progress = True
        if self._receiving is not None:
            self._receiving.feed_body(body)

    def on_message_complete(self) -> None:
        self._progress = True
        if self._receiving is not None and not self._upgrade:
            self._receiving.end_body()
            self._receiving = None

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HEAD:
            self._stop(431)

    def _stop(self, status: int) -> None:
        """Ends parsing from within it."""
        self._verdict = status
        raise ValueError(status)

    # What the exchanges tell.

    def answered(self, exchange: HttpExchange, *, close: bool, body_ended: bool) -> None:
        if exchange is not self._current:
            return
        self._current = None
        if close:
            self._close_gently(body_ended)
        elif self._queue:
            self.loop.call_soon(self._next)
        elif self._refusal:
            self._send_refusal()
        else:
            self.deadline = self.loop.time() + IDLE_SECONDS

    def waiting_for_body(self, bounded: bool) -> None:
        self.deadline = self.loop.time() + BODY_SECONDS if bounded else _NEVER

    def regulate_reading(self) -> None:
        """Reads on only while there is room for what comes."""
        receiving = self._receiving
        wanted = not self._queue and (receiving is None or not receiving.body_overflows)
        if wanted != self._reading and not self.transport.is_closing():
            self._reading = wanted
            if wanted:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    def close(self) -> None:
        """Sends what was written and closes; cuts a client that does not take it in time."""
        self._closing = True
        self._current = None
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = self.loop.time() + SEND_SECONDS
        self.transport.close()

    def close_within(self, seconds: float) -> None:
        """The peer has this time to close, before the connection is cut."""
        self.deadline = min(self.deadline, self.loop.time() + seconds)

    def cut(self) -> None:
        if self.websocket is not None:
            self.websocket.cut()
        else:
            self.transport.abort()

    def close_when_idle(self) -> None:
        if self.idle and not self._closing:
            self.close()

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = _NEVER
        if self.websocket is not None and not self._closing:
            self.transport.abort()
        elif self._closing:
            before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
            if 0 < self._unsent < before:
                self.deadline = self.loop.time() + SEND_SECONDS
            else:
                self.transport.abort()
        elif self._current is not None:
            self._refuse(408)
        elif self._head_begun:
            self._send_refusal(408)
        else:
            self.close()

    # Steps.

    def _start(self) -> None:
        exchange = self._current
        if exchange is not None:
            self.server.begin(exchange)

    def _next(self) -> None:
        if self._closing or not self._queue:
            return
        self._current = self._queue.popleft()
        self.regulate_reading()
        self._start()

    def _refuse(self, status: int) -> None:
        """The client sends what cannot be understood, now or after the answers that it still gets."""
        self._refusal = status
        broken, self._receiving = self._receiving, None
        if broken is not None and broken is not self._current:
            self._queue.remove(broken)
            broken = None
        if broken is not None:
            # The request under way will never be complete.
            self._current = None
            self._unstarted = False
            started = broken.answered
            broken.lose()
            if started:
                self.close()
                return
        elif self._unstarted:
            self._unstarted = False
            self._start()
        if self._current is None and not self._queue and not self._closing:
            self._send_refusal()

    def _send_refusal(self, status: int = 0) -> None:
        text = b"Bad request\n"
        head = render(status or self._refusal, ((b"content-type", b"text/plain; charset=utf-8"),))
        self.transport.write(b"%bcontent-length: %d\r\nconnection: close\r\n\r\n%b" % (head.lines, len(text), text))
        self._close_gently(body_ended=False)

    def _close_gently(self, body_ended: bool) -> None:
        if body_ended or self.transport.is_closing():
            self.close()
            return
        self._closing = True
        self._unsent = self.transport.get_write_buffer_size()
        self.deadline = self.loop.time() + (SEND_SECONDS if self._unsent > LINGER_BYTES else LINGER_SECONDS)
        self.transport.write_eof()
        if not self._reading:
            self._reading = True
            self.transport.resume_reading()

    def _upgraded(self, rest: bytes) -> None:
        exchange, self._upgrade = self._receiving, False
        if exchange is None:
            self._refuse(400)
            return
        headers = exchange.headers
        if headers.get("upgrade", "").lower() == "websocket" and exchange.method == "GET":
            self._receiving = None
            if exchange is not self._current:
                self._queue.remove(exchange)
                self._refuse(400)  # an upgrade behind other requests
                return
            self._current = None
            self._unstarted = False
            from cupola_agent.server.websocket import WebSocket

            self.websocket = WebSocket(self, exchange)
            if self.websocket.valid:
                self.server.begin_socket(self.websocket)
                if rest:
                    self.websocket.data_received(rest)
            return
        # An offer that is not taken up. The parser would not go on after it, so another reads the rest.
        self._parser = httptools.HttpRequestParser(self)
        self._resumed = True
        lines = "".join(
            f"{name}: {headers[name]}\r\n" for name in ("content-length", "transfer-encoding") if name in headers
        )
        self.data_received(f"POST / HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + rest)
