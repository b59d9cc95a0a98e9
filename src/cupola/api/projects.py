"""Projects: the prefix of every path, and the check that the one named exists."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import Receive, Scope, Send

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.ids import AGENT_NAME
from cupola.domain.principal import SandboxPrincipal

DEFAULT_PROJECT = "default"
ALIAS = "_project"
"""The name by which clients ask for the default project."""

OLD_SOCKET = "/api/projects/agents/endpoint/protocols/invocations_ws"
"""Where old clients open WebSockets: project and agent are in the query (wire contract, section 5.7)."""


class Project:
    """An ASGI application that finds the project of a path and the route below it.

    `services` are the routes that sandboxes call, and nobody else; they may call no other ones.
    """

    def __init__(self, projects: frozenset[str], routes: list[Route], services: list[Route]) -> None:
        self._projects = projects
        self._routes = routes
        self._services = services

    def routes(self) -> list[BaseRoute]:
        """Where it belongs in the server's routes."""
        mount = Mount("/api/projects/{project}", app=self)
        # An id in a path may hold line breaks: agents choose them.
        mount.path_regex = re.compile(mount.path_regex.pattern, re.DOTALL)
        return [Route(OLD_SOCKET, _OldSocket(self)), mount]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["project"]
        if name == ALIAS:
            scope["path_params"]["project"] = name = DEFAULT_PROJECT
        if name not in self._projects:
            raise not_found(f"Project {name[:64]}", "project_not_found")
        caller = scope["cupola.caller"]
        if isinstance(caller, SandboxPrincipal) and caller.project != name:
            raise CupolaError("forbidden", "The sandbox is of another project.", status=403)
        allowed: set[str] = set()
        for route in self._services if isinstance(caller, SandboxPrincipal) else self._routes:
            match, child = route.matches(scope)
            if match is Match.FULL:
                scope.update(child)
                await route.handle(scope, receive, send)
                return
            if match is Match.PARTIAL:
                allowed |= route.methods or set()
        if allowed:
            text = f"{scope['method']} is not possible here; use {', '.join(sorted(allowed))}."
            raise CupolaError("method_not_allowed", text, status=405)
        raise not_found(f"The path {scope['path'][:256]}")


class _OldSocket:
    """Takes a request to where it would go today."""

    def __init__(self, project: Project) -> None:
        self._project = project

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        for name in ("project_name", "agent_name"):
            if len(query.get(name, ())) != 1 or not AGENT_NAME.fullmatch(query[name][0].strip("_")):
                raise CupolaError("bad_request", f"{name}: expected once in the query, as a name.", param=name)
        project, agent = query["project_name"][0], query["agent_name"][0]
        root = f"/api/projects/{project}"
        path = f"{root}/agents/{agent}/endpoint/protocols/invocations_ws"
        await self._project(
            {**scope, "path": path, "root_path": root, "path_params": {"project": project}}, receive, send
        )
