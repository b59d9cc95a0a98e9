"""One WebSocket on a connection of ours; the frames are those of the websockets package, without its input and output.

No subprotocol is chosen and nothing is compressed (contract section 5.2).
"""

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from cupola_agent.exchange import HeaderPairs, SocketClosedError
from cupola_agent.server.heads import render
from cupola_agent.server.http_exchange import HttpExchange

if TYPE_CHECKING:
    from cupola_agent.server.connection import Connection

MAX_MESSAGE = 16 * 1024 * 1024
CLOSE_SECONDS = 5.0
"""For the peer to answer a close and to end the connection."""
RECEIVE_BUFFER = 256 * 1024
"""Bytes of messages that are kept while nobody receives them; then the peer has to wait."""
_MESSAGE_COST = 256
_MAX_REASON = 123

logger = logging.getLogger("cupola_agent.server")
# At DEBUG the package logs what is said; that is nobody's business, whatever level the developer chose.
_frames_logger = logging.getLogger("cupola_agent.server.frames")
_frames_logger.setLevel(logging.WARNING)


class WebSocket:
    """Implements `exchange.Socket`."""

    def __init__(self, connection: "Connection", exchange: HttpExchange) -> None:
        self.path = exchange.path
        self.query_string = exchange.query_string
        self.headers = exchange.headers
        self.raw_path = exchange.raw_path
        self.client = exchange.client
        self.server = exchange.server
        self._connection = connection
        self._protocol = ServerProtocol(max_size=MAX_MESSAGE, logger=_frames_logger)
        self._response: Response | None = None
        self._accepted = False
        self._parts: list[bytes] = []
        self._text = False
        self._messages: deque[str | bytes] = deque()
        self._buffered = 0
        self._reading = True
        self._arrived: asyncio.Future[None] | None = None
        self._lost = asyncio.Event()
        self._ping: asyncio.TimerHandle | None = None
        self.valid = self._read_handshake()

    def _read_handshake(self) -> bool:
        """Whether it is one; else it is refused already."""
        names = ("host", "connection", "upgrade", "sec-websocket-key", "sec-websocket-version")
        lines = "".join(f"{name}: {self.headers[name]}\r\n" for name in names if name in self.headers)
        if not lines.isascii():
            self._refuse(400)
            return False
        self._protocol.receive_data(f"GET / HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        for event in self._protocol.events_received():
            if isinstance(event, Request):
                response = self._protocol.accept(event)
                if response.status_code == 101:
                    self._response = response
                    return True
                self._refuse(response.status_code)
                return False
        self._refuse(400)
        return False

    async def reject(self, status: int) -> None:
        if self._accepted or self._lost.is_set():
            raise RuntimeError("the upgrade is answered already")
        self._refuse(status)

    def _refuse(self, status: int) -> None:
        self._accepted = True
        head = render(status, [(b"sec-websocket-version", b"13")] if status == 426 else ())
        self._connection.transport.write(head.lines + b"content-length: 0\r\nconnection: close\r\n\r\n")
        self._connection.close()
        self.connection_lost()

    async def accept(self, headers: HeaderPairs = ()) -> None:
        if self._response is None or self._accepted:
            raise RuntimeError("the upgrade is answered already")
        render(200, headers)  # raises for what cannot be sent
        given = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)
        self._response.headers = Headers([*self._response.headers.raw_items(), *given])
        self._accepted = True
        if self._lost.is_set():
            raise SocketClosedError(1006)
        self._protocol.send_response(self._response)
        self._flush()
        self._ping_later()

    async def receive(self) -> str | bytes:
        while not self._messages:
            if self._closed:
                raise SocketClosedError(self._code)
            if self._arrived is None:
                self._arrived = self._connection.loop.create_future()
            await asyncio.shield(self._arrived)
        message = self._messages.popleft()
        self._buffered -= len(message) + _MESSAGE_COST
        self._regulate_reading()
        return message

    async def send(self, message: str | bytes) -> None:
        if self._closed:
            raise SocketClosedError(self._code)
        if isinstance(message, str):
            self._protocol.send_text(message.encode())
        else:
            self._protocol.send_binary(message)
        self._flush()
        if self._connection.writable is not None:
            await asyncio.shield(self._connection.writable)
            if self._lost.is_set():
                raise SocketClosedError(self._code)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Waits for the peer's close, a few seconds at most. Does nothing when the WebSocket is closed already."""
        self._begin_close(code, reason)
        await self._lost.wait()

    async def end(self, code: int, reason: str) -> None:
        """The application is done with it, whatever it has left open."""
        if not self._accepted:
            self._refuse(403)
        await self.close(code, reason)

    def _begin_close(self, code: int, reason: str) -> None:
        if self._protocol.state is State.OPEN and not self._lost.is_set():
            while len(reason.encode()) > _MAX_REASON:
                reason = reason[:-1]
            self._protocol.send_close(code, reason)
            self._flush()

    def cut(self) -> None:
        """Tells the peer that the server goes away, and goes."""
        self._begin_close(CloseCode.GOING_AWAY, "")
        self._connection.close()

    @property
    def _closed(self) -> bool:
        return self._lost.is_set() or (self._accepted and self._protocol.state is not State.OPEN)

    @property
    def _code(self) -> int:
        received = self._protocol.close_rcvd
        return 1006 if received is None else received.code

    # What the connection tells.

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._frame(event)
        self._flush()
        if self._closed:
            self._wake()

    def connection_lost(self) -> None:
        if self._ping is not None:
            self._ping.cancel()
            self._ping = None
        self._lost.set()
        self._wake()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text = frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return  # the protocol answers pings and closes itself
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        data, self._parts = b"".join(self._parts), []
        try:
            message = data.decode() if self._text else data
        except UnicodeDecodeError:
            self._protocol.fail(CloseCode.INVALID_DATA, "not UTF-8")
            return
        self._messages.append(message)
        self._buffered += len(message) + _MESSAGE_COST
        self._regulate_reading()
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None:
            self._arrived.set_result(None)
            self._arrived = None

    def _regulate_reading(self) -> None:
        wanted = self._buffered <= RECEIVE_BUFFER
        transport = self._connection.transport
        if wanted != self._reading and not transport.is_closing():
            self._reading = wanted
            if wanted:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def _flush(self) -> None:
        data = self._protocol.data_to_send()
        transport = self._connection.transport
        if transport.is_closing():
            return
        transport.write(b"".join(data))
        if self._protocol.state is State.CLOSING or self._protocol.close_expected():
            self._connection.close_within(CLOSE_SECONDS)
        if b"" in data:
            # The end of the stream: the server is the one that closes (RFC 6455 section 7.1.1).
            self._connection.close()

    def _ping_later(self) -> None:
        seconds = self._connection.server.ping_seconds
        if seconds and not self._lost.is_set():
            self._ping = self._connection.loop.call_later(seconds, self._send_ping)

    def _send_ping(self) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(b"")
            self._flush()
            self._ping_later()
