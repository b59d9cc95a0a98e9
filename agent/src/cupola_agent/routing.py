"""A router for a dozen fixed routes: whole segments only, a segment in braces takes any non-empty text."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cupola_agent.http import Answer, Call

Endpoint = Callable[[Call], Awaitable[Answer | None]]
"""Answers a call: gives the answer to send, or None when it has streamed it to the call's exchange."""


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path, such as `/responses/{response_id}`."""

    method: str
    path: str
    endpoint: Endpoint


class Router:
    """Routes in the order they were added; GET also answers HEAD."""

    def __init__(self) -> None:
        self._methods_by_path: dict[str, dict[str, Endpoint]] = {}
        self._patterns: dict[str, tuple[str, ...]] = {}

    def add(self, *routes: Route) -> None:
        """Adds routes; a route of the same method and path is replaced."""
        for route in routes:
            if "{" in route.path:
                self._patterns[route.path] = tuple(route.path.split("/"))
            methods = self._methods_by_path.setdefault(route.path, {})
            methods[route.method] = route.endpoint
            if route.method == "GET":
                methods["HEAD"] = route.endpoint

    def find(self, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]] | Answer:
        """The endpoint with its path parameters, or the 404 or 405 to answer (contract section 1.2)."""
        parameters: Mapping[str, str] = {}
        methods = self._methods_by_path.get(path)
        if methods is None:
            given = path.split("/")
            for pattern, wanted in self._patterns.items():
                matched = _match(wanted, given)
                if matched is not None:
                    methods, parameters = self._methods_by_path[pattern], matched
                    break
            else:
                return Answer.text(404, "Not Found")
        endpoint = methods.get(method)
        if endpoint is None:
            return Answer.text(405, "Method Not Allowed", (b"allow", ", ".join(sorted(methods)).encode()))
        return endpoint, parameters


def _match(wanted: tuple[str, ...], given: list[str]) -> dict[str, str] | None:
    if len(wanted) != len(given):
        return None
    parameters: dict[str, str] = {}
    for expected, actual in zip(wanted, given, strict=True):
        if expected.startswith("{") and actual:
            parameters[expected[1:-1]] = actual
        elif expected != actual:
            return None
    return parameters
