"""The data-plane routes of a project: all that a caller can ask of an agent."""

from __future__ import annotations

from starlette.routing import Route

from cupola.gateway.body import Bodies
from cupola.gateway.finding import SessionFinder
from cupola.gateway.forward import Forwarder
from cupola.gateway.invocations import Invocations
from cupola.gateway.responses import Responses
from cupola.gateway.sockets import Sockets
from cupola.identity.call_ids import CallIds
from cupola.sessions.manager import SessionManager
from cupola.sessions.references import References
from cupola.storage.database import Database


class Gateway:
    """Both protocols, from the parts they share. Bodies may have at most `max_body` bytes."""

    def __init__(
        self, database: Database, manager: SessionManager, references: References, call_ids: CallIds, max_body: int
    ) -> None:
        forwarder = Forwarder(manager)
        shared = (
            Bodies(max_body),
            SessionFinder(database, manager, references, call_ids),
            references,
            forwarder,
            Sockets(forwarder),
        )
        self._protocols = (Responses(*shared), Invocations(*shared))

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        return [route for protocol in self._protocols for route in protocol.routes()]
