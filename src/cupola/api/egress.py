"""The egress policy of a project: what its sandboxes may reach outside. For administrators."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.api.http import caller, json_object
from cupola.domain.egress import parse_egress
from cupola.domain.errors import CupolaError
from cupola.sessions.egress import EgressPolicies


class EgressApi:
    """GET and PUT …/egress. `changed` is told the project whose policy is a new one."""

    def __init__(self, policies: EgressPolicies, changed: Callable[[str], None]) -> None:
        self._policies = policies
        self._changed = changed

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        return [
            Route("/egress", self.get, methods=["GET"]),
            Route("/egress", self.put, methods=["PUT"]),
        ]

    async def get(self, request: Request) -> Response:
        """The policy in force."""
        _require_administrator(request)
        return JSONResponse((await self._policies.policy(request.path_params["project"])).to_json())

    async def put(self, request: Request) -> Response:
        """Replace the policy. What has a session keeps the old one until it stops; what was made ahead is replaced."""
        _require_administrator(request)
        project = request.path_params["project"]
        policy = parse_egress(await json_object(request))
        await self._policies.change(project, policy)
        self._changed(project)
        return JSONResponse(policy.to_json())


def _require_administrator(request: Request) -> None:
    if not caller(request).administrator:
        raise CupolaError("forbidden", "Only administrators may see and change what a project reaches.", status=403)
