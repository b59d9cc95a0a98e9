"""The agent: answers the protocols its developer registered handlers for, on one port."""

import logging
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any, TypeVar, overload

from cupola_agent.environment import Environment
from cupola_agent.errors import ApiError, library_failed
from cupola_agent.exchange import BodyTooLargeError, ClientDisconnectedError, Exchange, Socket
from cupola_agent.handlers import Handler, is_async
from cupola_agent.http import Answer, Call, Header
from cupola_agent.invocations import Invocations
from cupola_agent.logs import start_log_fields
from cupola_agent.randomness import random_bytes
from cupola_agent.responses.arguments import ARGUMENTS as RESPONSE_ARGUMENTS
from cupola_agent.responses.compaction import ARGUMENTS as COMPACT_ARGUMENTS
from cupola_agent.responses.compaction import Compaction
from cupola_agent.responses.options import ResponseOptions
from cupola_agent.responses.resilience import Resilience
from cupola_agent.responses.routes import ResponseRoutes
from cupola_agent.responses.service import Responses
from cupola_agent.responses.socket import ResponseSocket
from cupola_agent.routing import Route, Router
from cupola_agent.stores import usual_store
from cupola_agent.stores.base import ResponseStore
from cupola_agent.version import server_identity

F = TypeVar("F", bound=Callable[..., Any])

_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_HEALTHY = Answer.json(200, b'{"status":"healthy"}')
_DRAINING = Answer.json(503, b'{"status":"draining"}')

logger = logging.getLogger("cupola_agent")


class Agent:
    """Answers the protocols that have a handler, on one port. It is an ASGI app itself.

    `store` opens a store of responses of another kind than the environment calls for; `default_model` stands in for a
    model that a request does not name; `history_limit` is how many items of history a handler gets at most, the newest.
    `openapi`, `asyncapi` and `asyncapi_yaml` are documents of the agent's invocations (contract section 5.1).
    `server_version` is added to `x-platform-server`. Platform settings are read once, from `environ` or else from the
    process environment (contract section 2).
    """

    def __init__(
        self,
        *,
        store: Callable[[], ResponseStore] | None = None,
        default_model: str = "",
        history_limit: int | None = None,
        openapi: Mapping[str, Any] | None = None,
        asyncapi: Mapping[str, Any] | None = None,
        asyncapi_yaml: str | None = None,
        server_version: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._variables = dict(os.environ if environ is None else environ)
        self.environment = Environment.read(self._variables)
        self._options = ResponseOptions(
            default_model=default_model,
            history_limit=self.environment.history_limit if history_limit is None else history_limit,
        )
        self._open_store = store
        self._opened: ResponseStore | None = None
        self._compact: Handler | None = None
        self._own_header: Header = (b"x-platform-server", server_identity(server_version).encode())
        self._draining = False
        self._router = Router()
        self._router.add(Route("GET", "/readiness", self._readiness))
        self._responses: Responses | None = None
        self._invocations = Invocations(self.environment, openapi, asyncapi, asyncapi_yaml)
        self._router.add(*self._invocations.document_routes())

    @overload
    def responses(self, function: F) -> F: ...
    @overload
    def responses(self, *, steerable: bool = ..., resilient: bool = ...) -> Callable[[F], F]: ...
    def responses(
        self, function: F | None = None, *, steerable: bool = False, resilient: bool = False
    ) -> F | Callable[[F], F]:
        """Registers the handler of `POST /responses` (contract section 4).

        It takes what it names: `input` (the user's text), `request` (the body), `context` (ResponseContext),
        `history` (the items before this turn), `stream` (ResponseStream, for full control), `client` (an OpenAI client
        for the project's models). It returns or yields text, items and events: see `cupola_agent.items`. Raises
        TypeError for any other parameter. The last registration counts.

        `steerable`: a newer turn of a conversation interrupts the one that runs. `resilient`: a response in the
        background outlives a crash, because the next process runs the handler again.
        """

        def register(function: F) -> F:
            handler = Handler.of(function, RESPONSE_ARGUMENTS)
            if "stream" in handler.names and not is_async(function):
                raise TypeError(
                    "a handler that takes 'stream' is an async function, because it writes on the event loop"
                )
            options = replace(self._options, steerable=steerable, resilient=resilient)
            self._responses = Responses(
                handler, self.environment, options, self._store, self._resilience() if resilient else None
            )
            self._router.add(*ResponseRoutes(self._responses, self.environment).routes())
            self._router.add(Compaction(self._store, self._compact).route())
            return function

        return register if function is None else register(function)

    def compact(self, function: F) -> F:
        """Registers what `POST /responses/compact` makes of a conversation; without it, nothing is left out.

        It takes what it names: `items` (the conversation), `request` (the body). It returns a summary as str, or the
        items to keep. Raises TypeError for any other parameter.
        """
        self._compact = Handler.of(function, COMPACT_ARGUMENTS)
        self._router.add(Compaction(self._store, self._compact).route())
        return function

    def invocations(self, function: F) -> F:
        """Registers the handler of `POST /invocations` (contract section 5.1).

        It takes what it names: `request` (Request), `stream` (the body as it arrives, in place of `request.body`),
        `context` (InvocationContext). It returns str, bytes, a value to send as JSON, or a Response, or it yields str
        or bytes, which are streamed. Raises TypeError for any other parameter.
        """
        self._router.add(*self._invocations.on_invoke(function))
        return function

    def get_invocation(self, function: F) -> F:
        """Registers the handler of `GET /invocations/{id}`; like `invocations`."""
        self._router.add(*self._invocations.on_get(function))
        return function

    def cancel_invocation(self, function: F) -> F:
        """Registers the handler of `POST /invocations/{id}/cancel`; like `invocations`."""
        self._router.add(*self._invocations.on_cancel(function))
        return function

    def websocket(self, function: F) -> F:
        """Registers the handler of `/invocations_ws` (contract section 5.2).

        It takes what it names: `socket` (WebSocket, which gives messages and takes them), `context`. Raises TypeError
        for any other parameter, and for a function that is not async.
        """
        self._invocations.on_socket(function)
        return function

    def run(self, host: str = "0.0.0.0", port: int | None = None) -> None:  # noqa: S104
        """Serves until SIGTERM or SIGINT, on `port`, else `PORT`, else 8088.

        Requests in flight may end within AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS. Raises SystemExit(1),
        after an error in the log, when it cannot listen there.
        """
        from cupola_agent.server.process import run  # the server is not for those who import an agent to test it

        run(self, host, port)

    async def start(self) -> None:
        """Called by the server before the first call."""
        if self.environment.hosted and not self._variables.get("FOUNDRY_PROJECT_ENDPOINT"):
            logger.warning("FOUNDRY_PROJECT_ENDPOINT is not set: responses are kept in this sandbox only")
        if self._responses is not None:
            await self._responses.start()

    def drain(self) -> None:
        """Called by the server when the process is told to stop: new work is refused from now on."""
        self._draining = True
        self._invocations.drain()
        if self._responses is not None:
            self._responses.drain()

    async def stop(self) -> None:
        """Called by the server at the end: waits for what still runs."""
        self.drain()
        if self._responses is not None:
            await self._responses.stop()

    async def answer(self, exchange: Exchange) -> None:
        """Answers one request. Only a cancellation is raised."""
        headers = exchange.headers
        request_id = _request_id(headers)
        start_log_fields(request_id=request_id)
        own = ((b"x-request-id", request_id.encode("latin-1")), self._own_header)
        found = self._router.find(exchange.method, exchange.path)
        try:
            if isinstance(found, Answer):
                answer: Answer | None = found
            else:
                endpoint, parameters = found
                answer = await endpoint(Call(exchange, request_id, parameters, own))
            if answer is not None:
                exchange.respond(answer.status, answer.headers + own, answer.body)
        except ClientDisconnectedError:
            exchange.abort()
        except BodyTooLargeError:
            refusal = ApiError(413, "request_too_large", "The body of the request is too large.").answer(request_id)
            exchange.respond(refusal.status, refusal.headers + own, refusal.body)
        except Exception as error:
            logger.exception("%s %s failed in the library", exchange.method, exchange.path)
            if exchange.answered:
                # Too late for another answer: the cut connection tells the client.
                exchange.abort()
                return
            failure = library_failed(error).answer(request_id)
            exchange.respond(failure.status, failure.headers + own, failure.body)

    async def talk(self, socket: Socket) -> None:
        """Holds one WebSocket."""
        request_id = _request_id(socket.headers)
        start_log_fields(request_id=request_id)
        if socket.path == "/responses" and self._responses is not None:
            await ResponseSocket(self._responses, socket, request_id).serve()
        elif socket.path == "/invocations_ws":
            await self._invocations.talk(socket, request_id)
        else:
            await socket.reject(404)

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]
    ) -> None:
        """The agent as an ASGI app, for another server or to be mounted in another app."""
        from cupola_agent.asgi import serve_asgi

        await serve_asgi(self, scope, receive, send)

    async def _readiness(self, _: Call) -> Answer:
        return _DRAINING if self._draining else _HEALTHY

    def _resilience(self) -> Resilience:
        from cupola_agent.stores.sqlite import state_root
        from cupola_agent.tasks import usual_tasks

        folder = state_root(self._variables) / "streams"
        return Resilience(usual_tasks(self.environment, self._variables), folder, self.environment)

    @property
    def _store(self) -> ResponseStore:
        """The one store of this agent, made when its first handler of responses is registered."""
        if self._opened is None:
            if self._open_store is not None:
                self._opened = self._open_store()
            else:
                self._opened = usual_store(self.environment, self._variables)
        return self._opened


def _request_id(headers: Mapping[str, str]) -> str:
    """The trace id of the caller's trace, else the caller's request id, else a new one (contract 1.5)."""
    if "traceparent" in headers:
        trace = _TRACEPARENT.match(headers["traceparent"])
        if trace:
            return trace[1]
    return headers.get("x-request-id") or random_bytes(16).hex()
