"""The documents that describe an agent's invocations: OpenAPI, AsyncAPI (contract section 5.1)."""

from collections.abc import Mapping
from typing import Any

from cupola_agent import jsons
from cupola_agent.errors import SOURCE_HEADER
from cupola_agent.http import Answer, Call
from cupola_agent.routing import Route

_FOLDER = "/invocations/docs"
_YAML = b"application/yaml; charset=utf-8"


def document_routes(
    openapi: Mapping[str, Any] | None, asyncapi: Mapping[str, Any] | None, asyncapi_yaml: str | None
) -> tuple[Route, ...]:
    """Raises TypeError or ValueError for a document that is not JSON."""
    yaml = None if asyncapi_yaml is None else Answer(200, ((b"content-type", _YAML),), asyncapi_yaml.encode())
    return (
        _route("openapi.json", _json(openapi), "OpenAPI spec"),
        _route("asyncapi.json", _json(asyncapi), "AsyncAPI (JSON) spec"),
        _route("asyncapi.yaml", yaml, "AsyncAPI (YAML) spec"),
    )


def _json(document: Mapping[str, Any] | None) -> Answer | None:
    return None if document is None else Answer.json(200, jsons.encode(document))


def _route(name: str, document: Answer | None, kind: str) -> Route:
    error = {"error": {"code": "not_found", "message": f"No {kind} registered"}}
    answer = document or Answer.json(404, jsons.encode(error), (SOURCE_HEADER, b"user"))

    async def answered(_: Call) -> Answer:
        return answer

    return Route("GET", f"{_FOLDER}/{name}", answered)
