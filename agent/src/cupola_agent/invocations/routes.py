"""The routes below `/invocations` (contract section 5.1)."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cupola_agent import ids, jsons
from cupola_agent.call import call_scope
from cupola_agent.context import InvocationContext
from cupola_agent.environment import Environment
from cupola_agent.errors import SOURCE_HEADER
from cupola_agent.exchange import BodyTooLargeError, ClientDisconnectedError, Exchange, Socket
from cupola_agent.handlers import Handler, is_async
from cupola_agent.http import Answer, Call, Header, Request
from cupola_agent.invocations.documents import document_routes
from cupola_agent.invocations.results import result_of
from cupola_agent.invocations.streams import send_stream
from cupola_agent.logs import add_log_fields
from cupola_agent.routing import Endpoint, Route

ARGUMENTS = ("request", "context")
INVOKE_ARGUMENTS = (*ARGUMENTS, "stream")
SOCKET_ARGUMENTS = ("socket", "context")

logger = logging.getLogger("cupola_agent")


class Invocations:
    """The handlers of invocations and of `/invocations_ws`, and what is answered where there is none."""

    def __init__(
        self,
        environment: Environment,
        openapi: Mapping[str, Any] | None,
        asyncapi: Mapping[str, Any] | None,
        asyncapi_yaml: str | None,
    ) -> None:
        self._environment = environment
        self._documents = document_routes(openapi, asyncapi, asyncapi_yaml)
        self._invoke: Handler | None = None
        self._get: Handler | None = None
        self._cancel: Handler | None = None
        self._socket: Handler | None = None
        self._draining = False

    def document_routes(self) -> tuple[Route, ...]:
        return self._documents

    def on_invoke(self, function: Callable[..., Any]) -> tuple[Route, ...]:
        """Each `on_…` takes a handler, and gives the routes to add. Raises TypeError for one that cannot be called."""
        handler = Handler.of(function, INVOKE_ARGUMENTS)
        if "stream" in handler.names and not is_async(function):
            raise TypeError("a handler that takes 'stream' must be async, because the stream is")
        self._invoke = handler
        return self._routes()

    def on_get(self, function: Callable[..., Any]) -> tuple[Route, ...]:
        self._get = Handler.of(function, ARGUMENTS)
        return self._routes()

    def on_cancel(self, function: Callable[..., Any]) -> tuple[Route, ...]:
        self._cancel = Handler.of(function, ARGUMENTS)
        return self._routes()

    def on_socket(self, function: Callable[..., Any]) -> None:
        handler = Handler.of(function, SOCKET_ARGUMENTS)
        if not is_async(function) or handler.streams:
            raise TypeError("a websocket handler must be an async function that yields nothing")
        self._socket = handler

    def drain(self) -> None:
        """No new invocation begins from now on."""
        self._draining = True

    async def talk(self, socket: Socket, request_id: str) -> None:
        """Holds one WebSocket."""
        if self._socket is None:
            await socket.reject(403)
            return
        if self._draining:
            await socket.reject(503)
            return
        from cupola_agent.invocations.socket import talk

        await talk(self._socket, socket, request_id, self._environment.session_id or ids.new_uuid())

    def _routes(self) -> tuple[Route, ...]:
        by_id = "/invocations/{invocation_id}"
        return (
            Route("POST", "/invocations", self._create),
            Route("GET", by_id, self._by_id("get_invocation", lambda: self._get)),
            Route("POST", f"{by_id}/cancel", self._by_id("cancel_invocation", lambda: self._cancel)),
        )

    async def _create(self, call: Call) -> Answer | None:
        given = call.headers.get("x-agent-invocation-id", "")
        invocation_id = given if ids.is_safe_id(given) else ids.new_uuid()
        session_id = self._session_id(call)
        headers = (_invocation_header(invocation_id), (b"x-agent-session-id", session_id.encode()))
        if self._invoke is None:
            return _error(501, "not_implemented", "no invocations handler is registered").with_headers(*headers)
        if self._draining:
            answer = _error(503, "service_unavailable", "Server is shutting down.", b"platform")
            return answer.with_headers(*headers)
        return await _run(self._invoke, call, invocation_id, session_id, headers, self._environment.sse_keep_alive)

    def _by_id(self, name: str, handler_of: Callable[[], Handler | None]) -> Endpoint:
        async def answered(call: Call) -> Answer | None:
            invocation_id = call.parameters["invocation_id"]
            # An id of any other shape could not be a header.
            headers = (_invocation_header(invocation_id),) if ids.is_safe_id(invocation_id) else ()
            handler = handler_of()
            if handler is None:
                return _error(404, "not_found", f"{name} not implemented").with_headers(*headers)
            session_id = self._session_id(call)
            return await _run(handler, call, invocation_id, session_id, headers, self._environment.sse_keep_alive)

        return answered

    def _session_id(self, call: Call) -> str:
        asked = call.query.get("agent_session_id", "")
        return asked if ids.is_safe_id(asked) else self._environment.session_id or ids.new_uuid()


async def _run(
    handler: Handler, call: Call, invocation_id: str, session_id: str, headers: tuple[Header, ...], keep_alive: float
) -> Answer | None:
    """Calls the handler, and answers with what it gives."""
    add_log_fields(invocation_id=invocation_id, session_id=session_id)
    exchange = call.exchange
    context = InvocationContext(call.request_id, session_id, call.headers, invocation_id)
    takes_stream = "stream" in handler.names
    try:
        request = _request(call, b"" if takes_stream else await exchange.body())
    except BodyTooLargeError:
        return _error(413, "request_too_large", "The body of the request is too large.").with_headers(*headers)
    arguments = {"request": request, "context": context, "stream": exchange.chunks() if takes_stream else None}
    try:
        with call_scope(call.caller), _while_the_client_is_there(exchange):
            result = result_of(await handler.call({name: arguments[name] for name in handler.names}))
            if isinstance(result, Answer):
                return result.with_headers(*headers)
            await send_stream(call, result, headers, keep_alive)
            return None
    except ClientDisconnectedError:
        raise
    except Exception:
        logger.exception("the invocations handler failed")
        if exchange.answered:
            exchange.abort()
            return None
        return _error(500, "internal_error", "Internal server error", b"upstream").with_headers(*headers)


@contextmanager
def _while_the_client_is_there(exchange: Exchange) -> Iterator[None]:
    """Cancels the code inside when the client leaves, and raises ClientDisconnectedError then."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  (an exchange is answered in a task)
    before = task.cancelling()
    inside = True

    def left() -> None:
        if inside:
            task.cancel()

    exchange.on_disconnect(left)
    try:
        yield
    except asyncio.CancelledError:
        if exchange.disconnected and task.uncancel() <= before:
            raise ClientDisconnectedError from None
        raise
    finally:
        inside = False


def _request(call: Call, body: bytes) -> Request:
    exchange = call.exchange
    return Request(
        method=exchange.method,
        path=exchange.path,
        headers=exchange.headers,
        body=body,
        request_id=call.request_id,
        query_string=exchange.query_string,
        path_parameters=call.parameters,
    )


def _invocation_header(invocation_id: str) -> Header:
    return b"x-agent-invocation-id", invocation_id.encode()


def _error(status: int, code: str, message: str, source: bytes = b"user") -> Answer:
    return Answer.json(status, jsons.encode({"error": {"code": code, "message": message}}), (SOURCE_HEADER, source))
