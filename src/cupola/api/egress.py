"""The egress policy of a project: what its sandboxes may reach outside. For administrators."""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.api.http import caller, json_object
from cupola.domain.egress import EgressPolicy, parse_egress
from cupola.domain.errors import CupolaError
from cupola.storage import egress
from cupola.storage.database import Database


class EgressApi:
    """GET and PUT …/egress. `default` is the policy of projects that were given none."""

    def __init__(self, database: Database, default: EgressPolicy, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._default = default
        self._clock = clock
        self.changed: Callable[[], None] = lambda: None
        """Called after a policy was replaced: sandboxes made ahead have the old one."""

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        return [
            Route("/egress", self.get, methods=["GET"]),
            Route("/egress", self.put, methods=["PUT"]),
        ]

    async def policy(self, project: str) -> EgressPolicy:
        """The policy that a project's sandboxes get."""
        found = await self._database.read(lambda connection: egress.find_egress(connection, project))
        return self._default if found is None else found

    async def get(self, request: Request) -> Response:
        """The policy in force."""
        _require_administrator(request)
        return JSONResponse((await self.policy(request.path_params["project"])).to_json())

    async def put(self, request: Request) -> Response:
        """Replace the policy; sandboxes that run keep the one they were started with."""
        _require_administrator(request)
        project = request.path_params["project"]
        policy = parse_egress(await json_object(request))
        await self._database.write(
            lambda connection: egress.set_egress(connection, project, policy, int(self._clock()))
        )
        self.changed()
        return JSONResponse(policy.to_json())


def _require_administrator(request: Request) -> None:
    if not caller(request).administrator:
        raise CupolaError("forbidden", "Only administrators may see and change what a project reaches.", status=403)
