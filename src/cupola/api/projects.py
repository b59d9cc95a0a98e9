"""Projects: the prefix of every path, and the check that the one named exists."""

from __future__ import annotations

import re

from starlette.routing import Match, Mount, Route
from starlette.types import Receive, Scope, Send

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.principal import SandboxPrincipal

DEFAULT_PROJECT = "default"
ALIAS = "_project"
"""The name by which clients ask for the default project."""


class Project:
    """An ASGI application that finds the project of a path and the route below it.

    `services` are the routes that sandboxes call, and nobody else; they may call no other ones.
    """

    def __init__(self, projects: frozenset[str], routes: list[Route], services: list[Route]) -> None:
        self._projects = projects
        self._routes = routes
        self._services = services

    def mount(self) -> Mount:
        """Where it belongs in the server's routes."""
        mount = Mount("/api/projects/{project}", app=self)
        # An id in a path may hold line breaks: agents choose them.
        mount.path_regex = re.compile(mount.path_regex.pattern, re.DOTALL)
        return mount

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
