"""WebSockets of invocations: what a handler holds, and how each one ends (contract section 5.2)."""

import logging
from collections.abc import AsyncIterator, Mapping
from time import monotonic
from typing import Any

from cupola_agent import jsons
from cupola_agent.call import Caller, call_scope
from cupola_agent.context import CallContext
from cupola_agent.exchange import Socket, SocketClosedError
from cupola_agent.handlers import Handler
from cupola_agent.http import parsed_query
from cupola_agent.logs import add_log_fields

NORMAL, GOING_AWAY, NO_STATUS, INTERNAL_ERROR = 1000, 1001, 1005, 1011

# Those of RFC 6455 that an application may send; all from 3000 on are free.
_CODES = frozenset({NORMAL, 1003, 1007, 1008, 1009, 1010, INTERNAL_ERROR})

logger = logging.getLogger("cupola_agent")


class WebSocket:
    """A WebSocket that is open. `async for` gives its messages, text as str, until either side closes it.

    `headers` are those of the handshake, names in lower case.
    """

    def __init__(self, socket: Socket) -> None:
        self._socket = socket
        self._ended: tuple[int, str] | None = None

    @property
    def ended(self) -> tuple[int, str] | None:
        """The code it was closed with and by whom, `agent` or `client`; None before that is known."""
        return self._ended

    @property
    def headers(self) -> Mapping[str, str]:
        return self._socket.headers

    @property
    def query(self) -> dict[str, str]:
        """Query parameters; of a repeated one, the last."""
        return parsed_query(self._socket.query_string)

    async def receive(self) -> str | bytes:
        """The next message. Raises SocketClosedError."""
        try:
            return await self._socket.receive()
        except SocketClosedError as error:
            self._lose(error)
            raise

    async def send(self, message: str | bytes) -> None:
        """Waits while the peer is slow. Raises SocketClosedError."""
        try:
            await self._socket.send(message)
        except SocketClosedError as error:
            self._lose(error)
            raise

    async def send_json(self, value: Any) -> None:
        """Sends a value as JSON, in a message of text. Raises TypeError or ValueError when it is not JSON."""
        await self.send(jsons.encode(value).decode())

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Closes it; 4000 to 4999 are for what the agent has to say. Raises ValueError for a code that is reserved."""
        if code not in _CODES and not 3000 <= code <= 4999:
            raise ValueError(f"a WebSocket cannot be closed with {code}")
        if self._ended is None:
            self._ended = code, "agent"
        await self._socket.close(code, reason)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self._messages()

    async def _messages(self) -> AsyncIterator[str | bytes]:
        while True:
            try:
                message = await self.receive()
            except SocketClosedError:
                return
            yield message

    def _lose(self, error: SocketClosedError) -> None:
        if self._ended is None:
            # A close without a code is a usual one.
            self._ended = NORMAL if error.code == NO_STATUS else error.code, "client"


async def talk(handler: Handler, socket: Socket, request_id: str, session_id: str) -> None:
    """Accepts the WebSocket, calls the handler, and closes what that leaves open."""
    began = monotonic()
    add_log_fields(session_id=session_id)
    headers = socket.headers
    caller = Caller.of(headers, request_id)
    context = CallContext(request_id, session_id, headers)
    websocket = WebSocket(socket)
    arguments = {"socket": websocket, "context": context}
    ended = GOING_AWAY, "server"
    try:
        await socket.accept()
        ended = await _serve(handler, arguments, websocket, caller)
    except SocketClosedError as error:
        ended = error.code, "client"
    finally:
        code, initiator = ended
        milliseconds = round((monotonic() - began) * 1000)
        add_log_fields(close_code=str(code), initiator=initiator, duration_ms=str(milliseconds))
        logger.info(
            "WebSocket of session %s closed after %d ms with %d by the %s", session_id, milliseconds, code, initiator
        )


async def _serve(
    handler: Handler, arguments: Mapping[str, Any], websocket: WebSocket, caller: Caller
) -> tuple[int, str]:
    """Calls the handler and closes the WebSocket; gives the code and who closed it."""
    code, reason = NORMAL, ""
    try:
        with call_scope(caller):
            await handler.call({name: arguments[name] for name in handler.names})
    except SocketClosedError:
        logger.debug("a WebSocket was closed while its handler used it")
    except Exception:
        logger.exception("the websocket handler failed")
        code, reason = INTERNAL_ERROR, "Internal server error"
    ended = websocket.ended
    await websocket.close(code, reason)
    return ended or (code, "agent")
