"""A router for a dozen fixed routes: whole segments only, a segment in braces takes any non-empty text."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from cupola_agent.asgi import Answer, text_answer
from cupola_agent.http import Request

Endpoint = Callable[[Request], Awaitable[Answer]]


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

    def add(self, *routes: Route) -> None:
        """Adds routes; a route of the same method and path is replaced."""
        for route in routes:
            methods = self._methods_by_path.setdefault(route.path, {})
            methods[route.method] = route.endpoint
            if route.method == "GET":
                methods["HEAD"] = route.endpoint

    def find(self, method: str, path: str) -> tuple[Endpoint, Mapping[str, str]] | Answer:
        """The endpoint with its path parameters, or the 404 or 405 to answer (contract section 1.2)."""
        parameters: Mapping[str, str] | None = {}
        methods = self._methods_by_path.get(path)
        if methods is None:
            for pattern, candidate in self._methods_by_path.items():
                parameters = _match(pattern, path)
                if parameters is not None:
                    methods = candidate
                    break
        if methods is None or parameters is None:
            return text_answer(404, "Not Found")
        endpoint = methods.get(method)
        if endpoint is None:
            return text_answer(405, "Method Not Allowed", ("allow", ", ".join(sorted(methods))))
        return endpoint, parameters


def _match(pattern: str, path: str) -> dict[str, str] | None:
    wanted, given = pattern.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    parameters: dict[str, str] = {}
    for expected, actual in zip(wanted, given, strict=True):
        if expected.startswith("{") and actual:
            parameters[expected[1:-1]] = actual
        elif expected != actual:
            return None
    return parameters
