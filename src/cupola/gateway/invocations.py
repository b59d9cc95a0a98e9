"""The Invocations protocol: any body of any type, invocations by their id, documents, and WebSockets."""

from __future__ import annotations

import asyncio

from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cupola.domain.errors import CupolaError
from cupola.domain.ids import new_guid
from cupola.domain.session import Session
from cupola.gateway.body import Bodies, Endpoint, while_connected
from cupola.gateway.finding import SessionFinder, calling
from cupola.gateway.forward import AgentRequest, Forwarder, agent_method
from cupola.gateway.sockets import Sockets, asks_for_websocket
from cupola.gateway.timing import Timing
from cupola.sandbox.http import Response
from cupola.sessions.references import References
from cupola.storage.references import ReferenceKind

BASE = "/agents/{name}/endpoint/protocols"
DOCUMENTS = frozenset({"openapi.json", "asyncapi.json", "asyncapi.yaml"})


class Invocations:
    """The routes of the Invocations protocol. Bodies and answers are streamed through."""

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
        one = f"{BASE}/invocations/{{invocation}}"
        return [
            Route(f"{BASE}/invocations", Endpoint(self.invoke), methods=["POST"]),
            Route(f"{BASE}/invocations/docs/{{document}}", Endpoint(self.document), methods=["GET"]),
            Route(one, Endpoint(self.by_id), methods=["GET"]),
            Route(f"{one}/cancel", Endpoint(self.by_id), methods=["POST"]),
            Route(f"{BASE}/invocations_ws", Endpoint(self.socket), methods=["GET"]),
        ]

    async def invoke(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST …/invocations."""
        scope["cupola.server_timing"] = Timing()
        self._bodies.check_length(scope)
        session, version = await self._finder.by_query(scope, "invocations")
        caller = calling(scope)
        invocation_id = new_guid()

        async def note(response: Response) -> None:
            if response.status == 202:
                # The caller will come back for it.
                await self._references.record(ReferenceKind.INVOCATION, invocation_id, caller, session)
            elif response.status < 400:
                self._references.remember(ReferenceKind.INVOCATION, invocation_id, caller, session)

        read = asyncio.Event()
        request = AgentRequest(
            b"POST", _target(b"/invocations", session), self._bodies.stream(receive, read), _mark(invocation_id)
        )
        await while_connected(receive, read, self._forwarder.forward(scope, send, session, version, request, note))

    async def by_id(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET …/invocations/{id}, POST …/invocations/{id}/cancel."""
        scope["cupola.server_timing"] = Timing()
        invocation_id = scope["path_params"]["invocation"]
        session, version = await self._finder.of(scope, ReferenceKind.INVOCATION, invocation_id, "invocations")
        rest = b"/cancel" if scope["method"] == "POST" else b""
        path = b"/invocations/" + invocation_id.encode() + rest
        request = AgentRequest(agent_method(scope), _target(path, session), marks=_mark(invocation_id))
        await while_connected(receive, None, self._forwarder.forward(scope, send, session, version, request))

    async def document(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET …/invocations/docs/…: what an agent says of itself, which is the same in all sessions of a version."""
        document = scope["path_params"]["document"]
        if document not in DOCUMENTS:
            raise CupolaError(
                "not_found", f"There is no document {document[:64]}, only {', '.join(sorted(DOCUMENTS))}.", status=404
            )
        scope["cupola.server_timing"] = Timing()
        protocol = "invocations" if document == "openapi.json" else "invocations_ws"
        session, version = await self._finder.any(scope, protocol)
        request = AgentRequest(b"GET", b"/invocations/docs/" + document.encode())
        await while_connected(receive, None, self._forwarder.forward(scope, send, session, version, request))

    async def socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """GET …/invocations_ws with an upgrade."""
        if not asks_for_websocket(scope):
            raise CupolaError("upgrade_required", "Open a WebSocket here: version 13, without a body.", status=426)
        scope["cupola.server_timing"] = Timing()
        session, version = await self._finder.by_query(scope, "invocations_ws")
        await self._sockets.open(scope, send, session, version, _target(b"/invocations_ws", session, scope))


def _mark(invocation_id: str) -> list[tuple[bytes, bytes]]:
    return [(b"x-agent-invocation-id", invocation_id.encode())]


def _target(path: bytes, session: Session, scope: Scope | None = None) -> bytes:
    own = b"agent_session_id=" + session.id.encode()
    if scope is None:
        return path + b"?" + own
    # A socket has no body, so what a caller wants to tell stands in its address.
    given: bytes = scope["query_string"]
    others = [part for part in given.split(b"&") if part and part.partition(b"=")[0] != b"agent_session_id"]
    return path + b"?" + b"&".join([own, *others])
