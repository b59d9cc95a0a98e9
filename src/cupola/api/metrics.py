"""The metrics of the server, for administrators and their Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cupola.api.http import caller
from cupola.domain.errors import CupolaError
from cupola.sessions.manager import SessionManager
from cupola.telemetry import metrics


class MetricsApi:
    """GET /metrics."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    def routes(self) -> list[Route]:
        """Paths are those of the server."""
        return [Route("/metrics", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        """All metrics as text."""
        if not caller(request).administrator:
            raise CupolaError("forbidden", "Only administrators may read the metrics.", status=403)
        self._manager.measure()
        return Response(metrics.exposition(), media_type=metrics.CONTENT_TYPE)
