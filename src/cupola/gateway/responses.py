"""The Responses protocol: turns, and what can be done with a response by its id."""

from __future__ import annotations

from functools import partial

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cupola.domain.errors import CupolaError
from cupola.domain.ids import new_response_id
from cupola.gateway.background import until_complete
from cupola.gateway.body import Bodies, Endpoint, while_connected
from cupola.gateway.finding import SessionFinder, calling
from cupola.gateway.forward import AgentRequest, Forwarder, agent_method
from cupola.gateway.sockets import Sockets, asks_for_websocket
from cupola.gateway.target import responses_target
from cupola.gateway.timing import Timing
from cupola.sandbox.http import Response
from cupola.sessions.references import References
from cupola.storage.references import ReferenceKind

BASES = (
    "/openai",
    "/openai/v1",
    "/agents/{name}/endpoint/protocols/openai",
    "/agents/{name}/endpoint/protocols/openai/v1",
)


class Responses:
    """The routes of the Responses protocol under each base address.

    A body is read whole because routing depends on it; it is handed on byte for byte. Answers are streamed.
    """

    def __init__(
        self, bodies: Bodies, finder: SessionFinder, references: References, forwarder: Forwarder, sockets: Sockets
    ) -> None:
        self._bodies = bodies
        self._finder = finder
        self._references = references
        self._forwarder = forwarder
        self._sockets = sockets

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        found = []
        for base in BASES:
            one = f"{base}/responses/{{response}}"
            found += [
                Route(f"{base}/responses", Endpoint(self.create), methods=["POST"]),
                Route(f"{base}/responses", Endpoint(self.socket), methods=["GET"]),
                Route(f"{base}/responses/compact", Endpoint(self.compact), methods=["POST"]),
                Route(one, Endpoint(partial(self.by_id, b"")), methods=["GET", "DELETE"]),
                Route(f"{one}/cancel", Endpoint(partial(self.by_id, b"/cancel")), methods=["POST"]),
                Route(f"{one}/input_items", Endpoint(partial(self.by_id, b"/input_items")), methods=["GET"]),
            ]
        return found

    async def create(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST …/responses: one turn."""
        scope["cupola.server_timing"] = Timing()
        body = await self._bodies.read(receive)
        target = responses_target(body, scope["path_params"].get("name"))
        session, version = await self._finder.for_turn(scope, target)
        caller = calling(scope)
        # Its partition is that of the turn before it, else of the conversation (container contract, section 4.2).
        response_id = new_response_id(target.previous, target.conversation)

        async def note(response: Response) -> None:
            if response.status >= 400 or not target.stored:
                return
            if target.background:
                await self._references.record(ReferenceKind.RESPONSE, response_id, caller, session)
            else:
                self._references.remember(ReferenceKind.RESPONSE, response_id, caller, session)

        request = AgentRequest(
            b"POST", _target(b"/responses", scope), body, [(b"x-agent-response-id", response_id.encode())]
        )
        goes_on = until_complete(response_id, scope["cupola.user_headers"]) if target.background else None
        await while_connected(
            receive, None, self._forwarder.forward(scope, send, session, version, request, note, goes_on)
        )

    async def compact(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST …/responses/compact: what an agent makes of a long conversation, in the session that has it."""
        scope["cupola.server_timing"] = Timing()
        body = await self._bodies.read(receive)
        target = responses_target(body, scope["path_params"].get("name"))
        session, version = await self._finder.for_turn(scope, target)
        request = AgentRequest(b"POST", _target(b"/responses/compact", scope), body)
        await while_connected(receive, None, self._forwarder.forward(scope, send, session, version, request))

    async def by_id(self, rest: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """GET and DELETE …/responses/{id}, POST …/cancel, GET …/input_items: the agent answers, woken if it has to be."""
        scope["cupola.server_timing"] = Timing()
        response_id = scope["path_params"]["response"]
        session, version = await self._finder.of(scope, ReferenceKind.RESPONSE, response_id, "responses")
        path = b"/responses/" + response_id.encode() + rest
        request = AgentRequest(agent_method(scope), _target(path, scope))
        await while_connected(receive, None, self._forwarder.forward(scope, send, session, version, request))

    async def socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET …/responses with an upgrade: turns over a WebSocket, at an agent's own endpoint."""
        if not asks_for_websocket(scope):
            raise CupolaError("method_not_allowed", "GET is not possible here; use POST.", status=405)
        if "name" not in scope["path_params"]:
            raise CupolaError(
                "invalid_request_error", "A WebSocket is opened at an agent's own endpoint: …/agents/<agent>/endpoint/…"
            )
        scope["cupola.server_timing"] = Timing()
        session, version = await self._finder.by_query(scope, "responses")
        await self._sockets.open(scope, send, session, version, _target(b"/responses", scope))


def _target(path: bytes, scope: Scope) -> bytes:
    query: bytes = scope["query_string"]
    return path + (b"?" + query if query else b"")
