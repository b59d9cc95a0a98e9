"""Reads and checks the body of `POST /responses`, in the order of contract section 4.3."""

from collections.abc import Mapping
from typing import Any

from cupola_agent import ids, jsons
from cupola_agent.errors import ApiError, invalid_request
from cupola_agent.responses.objects import public_item
from cupola_agent.responses.schema import FIELDS, problems

_MAX_METADATA = 16
_MAX_KEY = 64
_MAX_VALUE = 512


def parse_request(body: bytes) -> dict[str, Any]:
    """The known fields of the request that are not null. Raises ApiError (400)."""
    try:
        given = jsons.decode(body)
    except ValueError as error:
        raise invalid_request(str(error), code="invalid_request_error") from error
    return check_request(given)


def check_request(given: Any) -> dict[str, Any]:
    """Like `parse_request`, for a body that is decoded already."""
    if not isinstance(given, dict):
        raise invalid_request("request body must be a JSON object")
    request = {name: value for name, value in given.items() if value is not None and name in FIELDS}
    found = sorted(problems(request), key=lambda problem: problem["param"])
    if found:
        raise ApiError(400, "invalid_request", "request body failed schema validation", details=found)
    _drop_reserved(request)
    _check_mode(request)
    _check_metadata(request.get("metadata", {}))
    previous = request.get("previous_response_id")
    if previous is not None and not ids.is_response_id(previous):
        raise invalid_request("Malformed identifier.", "previous_response_id", "invalid_parameters")
    _check_agent_reference(request.get("agent_reference"))
    return request


def checked_response_id(response_id: str) -> str:
    """Raises ApiError (400) when an id chosen by the platform has another shape than ours."""
    if not ids.is_response_id(response_id) or ids.partition_of(response_id) is None:
        shape = "caresp_<18-char partition key><32-char alphanumeric entropy>"
        raise invalid_request(f"response_id must be in format {shape}", "response_id")
    return response_id


def _drop_reserved(request: dict[str, Any]) -> None:
    """Takes out what agents note for themselves: a client may neither see nor set it."""
    metadata = request.get("metadata")
    if metadata and "_internal_metadata" in metadata:
        request["metadata"] = {name: value for name, value in metadata.items() if name != "_internal_metadata"}
        if not request["metadata"]:
            del request["metadata"]
    items = request.get("input")
    if isinstance(items, list) and any("internal_metadata" in item for item in items):
        request["input"] = [public_item(item) for item in items]


def _check_mode(request: Mapping[str, Any]) -> None:
    if request.get("background") and request.get("store") is False:
        raise invalid_request("background=true requires store=true", "background", "unsupported_parameter")
    if "stream_options" in request and not request.get("stream"):
        raise invalid_request("stream_options requires stream=true", "stream", "invalid_mode")


def _check_metadata(metadata: Mapping[str, Any]) -> None:
    if len(metadata) > _MAX_METADATA:
        raise invalid_request(f"metadata must have at most {_MAX_METADATA} key-value pairs", "metadata")
    for key, value in metadata.items():
        if len(key) > _MAX_KEY:
            raise invalid_request(
                f"metadata key '{key[:_MAX_KEY]}...' exceeds maximum length of {_MAX_KEY} characters",
                "metadata",
            )
        if not isinstance(value, str):
            raise invalid_request(f"metadata value for key '{key}' must be a string", "metadata")
        if len(value) > _MAX_VALUE:
            raise invalid_request(
                f"metadata value for key '{key}' exceeds maximum length of {_MAX_VALUE} characters",
                "metadata",
            )


def _check_agent_reference(reference: Mapping[str, Any] | None) -> None:
    if reference is None:
        return
    if reference.get("type", "agent_reference") != "agent_reference":
        raise invalid_request("agent_reference.type must be 'agent_reference'", "agent_reference.type")
    name = reference.get("name")
    if not isinstance(name, str) or not name.strip():
        raise invalid_request("agent_reference.name must be a non-empty string", "agent_reference.name")
