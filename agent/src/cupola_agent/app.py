"""The agent: an ASGI app with the routes of the protocols its developer registered handlers for."""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cupola_agent import ids
from cupola_agent.asgi import (
    Answer,
    ClientDisconnectedError,
    Receive,
    Scope,
    Send,
    cancelled_on_disconnect,
    decoded_headers,
    json_answer,
    read_body,
    send_answer,
)
from cupola_agent.environment import Environment
from cupola_agent.errors import library_failed
from cupola_agent.handlers import Handler
from cupola_agent.http import Request
from cupola_agent.invocations import ARGUMENTS as INVOCATION_ARGUMENTS
from cupola_agent.invocations import Invocations
from cupola_agent.logs import start_log_fields
from cupola_agent.responses import ARGUMENTS as RESPONSE_ARGUMENTS
from cupola_agent.responses import Responses
from cupola_agent.routing import Endpoint, Route, Router
from cupola_agent.store import MemoryStore
from cupola_agent.version import server_identity

F = TypeVar("F", bound=Callable[..., Any])

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

logger = logging.getLogger("cupola_agent")


class Agent:
    """Answers the protocols that have a handler, on one port. It is an ASGI app itself.

    Platform settings are read once, from `environ` or else from the process environment (contract section 2).
    """

    def __init__(self, *, environ: Mapping[str, str] | None = None) -> None:
        self.environment = Environment.read(os.environ if environ is None else environ)
        self._identity = server_identity()
        self._store = MemoryStore()
        self._invoke: Handler | None = None
        self._get_invocation: Handler | None = None
        self._cancel_invocation: Handler | None = None
        self._router = Router()
        self._router.add(Route("GET", "/readiness", _readiness))

    def responses(self, function: F) -> F:
        """Registers the handler of `POST /responses` (contract section 4).

        It takes what it names: `input` (the user's text), `context` (ResponseContext), `request` (the body as
        a dict). It returns the answer as str, or yields it in pieces, which are streamed. Raises TypeError
        for any other parameter. The last registration counts.
        """
        handler = Handler.of(function, RESPONSE_ARGUMENTS)
        self._router.add(*Responses(handler, self.environment, self._store).routes())
        return function

    def invocations(self, function: F) -> F:
        """Registers the handler of `POST /invocations` (contract section 5.1).

        It takes what it names: `request` (Request), `context` (InvocationContext). It returns str, bytes, a
        value to send as JSON, or a Response, or it yields str or bytes, which are streamed. Raises TypeError
        for any other parameter.
        """
        self._invoke = Handler.of(function, INVOCATION_ARGUMENTS)
        self._route_invocations()
        return function

    def get_invocation(self, function: F) -> F:
        """Registers the handler of `GET /invocations/{id}`; like `invocations`."""
        self._get_invocation = Handler.of(function, INVOCATION_ARGUMENTS)
        self._route_invocations()
        return function

    def cancel_invocation(self, function: F) -> F:
        """Registers the handler of `POST /invocations/{id}/cancel`; like `invocations`."""
        self._cancel_invocation = Handler.of(function, INVOCATION_ARGUMENTS)
        self._route_invocations()
        return function

    def _route_invocations(self) -> None:
        protocol = Invocations(self._invoke, self._get_invocation, self._cancel_invocation, self.environment)
        self._router.add(*protocol.routes())

    def run(self, host: str = "0.0.0.0", port: int | None = None) -> None:  # noqa: S104
        """Serves until SIGTERM or SIGINT, on `port`, else `PORT`, else 8088.

        Requests in flight may end within AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS. Raises SystemExit(1),
        after an error in the log, when it cannot listen there.
        """
        from cupola_agent.hosting import serve  # the server is not for those who import an agent to test it

        serve(self, host, port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        method, path = scope["method"], scope["path"]
        headers = decoded_headers(scope["headers"])
        request_id = _request_id(headers)
        start_log_fields(request_id=request_id)
        own_headers = (("x-request-id", request_id), ("x-platform-server", self._identity))
        bodiless = method == "HEAD"
        status = 0
        outcome = "answered"
        try:
            found = self._router.find(method, path)
            if isinstance(found, Answer):
                status = found.status
                await send_answer(send, found.with_headers(*own_headers), bodiless=bodiless)
                return
            endpoint, parameters = found
            request = Request(
                method, path, headers, await read_body(receive), request_id, scope["query_string"], parameters
            )
            async with cancelled_on_disconnect(receive):
                answer = await _answer(endpoint, request)
                status = answer.status
                await send_answer(send, answer.with_headers(*own_headers), bodiless=bodiless)
        except ClientDisconnectedError:
            outcome = "client disconnected"
        except Exception:
            # Too late for another answer: the server cuts the connection, which tells the client.
            outcome = "cut"
            logger.exception("the answer to %s %s broke off", method, path)
        finally:
            milliseconds = (time.perf_counter() - started) * 1000
            logger.log(_level(path, status), "%s %s %d %s in %.1f ms", method, path, status, outcome, milliseconds)


async def _answer(endpoint: Endpoint, request: Request) -> Answer:
    try:
        return await endpoint(request)
    except Exception as error:
        logger.exception("%s %s failed in the library", request.method, request.path)
        return library_failed(error)


async def _readiness(_: Request) -> Answer:
    return json_answer(200, b'{"status":"healthy"}')


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _request_id(headers: Mapping[str, str]) -> str:
    """The trace id of the caller's trace, else the caller's request id, else a new one (contract 1.5)."""
    trace = _TRACEPARENT.match(headers.get("traceparent", ""))
    if trace:
        return trace[1]
    return headers.get("x-request-id") or ids.new_uuid().replace("-", "")


def _level(path: str, status: int) -> int:
    if path == "/readiness":
        return logging.DEBUG  # platforms ask several times a second
    return logging.WARNING if status >= 400 else logging.INFO
