"""What the body of a request of the Responses protocol says about where it goes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.session import check_session_id

_CONVERSATION = re.compile(r"[A-Za-z0-9_.:-]{1,256}")


class _AgentReference(msgspec.Struct):
    name: str
    type: str = ""
    version: str | int | None = None


class _Conversation(msgspec.Struct):
    id: str


class _ResponsesBody(msgspec.Struct):
    agent: _AgentReference | None = None
    agent_reference: _AgentReference | None = None
    agent_session_id: str | None = None
    model: str | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | _Conversation | None = None


_decode_body = msgspec.json.Decoder(_ResponsesBody).decode


@dataclass(frozen=True)
class Target:
    """The agent, its version if one is asked for, and what names the session; `stored` is False when nobody can come back for
    the response."""

    agent: str
    number: int | None
    session_id: str | None
    conversation: str | None = None
    previous: str | None = None
    background: bool = False
    stored: bool = True


def responses_target(body: bytes, name_in_path: str | None) -> Target:
    """Where a body goes. Raises CupolaError (400, 404)."""
    try:
        parsed = _decode_body(body)
    except msgspec.ValidationError as error:
        raise CupolaError("invalid_request_error", f"The body is not as expected: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CupolaError("invalid_request_error", f"The body is not JSON: {error}.") from error
    reference = parsed.agent_reference or parsed.agent
    key = "agent_reference" if parsed.agent_reference else "agent"
    if reference is not None and reference.type != "agent_reference":
        raise CupolaError("invalid_request_error", f'{key}.type: expected "agent_reference".', param=f"{key}.type")
    name = name_in_path or (reference.name if reference else None)
    if name is None:
        raise CupolaError(
            "invalid_request_error",
            'The body names no agent; add "agent_reference": {"type": "agent_reference", "name": "<agent>"}, or use the '
            "agent's own endpoint.",
            param="agent_reference",
        )
    if reference is not None and reference.name != name:
        raise CupolaError(
            "invalid_request_error", f"{key}.name: the path is of agent {name[:63]}.", param=f"{key}.name"
        )
    return Target(
        name,
        _number(reference, key),
        None if parsed.agent_session_id is None else check_session_id(parsed.agent_session_id),
        _conversation(parsed.conversation),
        parsed.previous_response_id or None,
        background=bool(parsed.background),
        stored=parsed.store is not False,
    )


def _conversation(given: str | _Conversation | None) -> str | None:
    found = given.id if isinstance(given, _Conversation) else given
    if found is not None and not _CONVERSATION.fullmatch(found):
        raise CupolaError(
            "invalid_request_error",
            "conversation: expected 1 to 256 letters, digits, or any of `_.:-`.",
            param="conversation",
        )
    return found


def _number(reference: _AgentReference | None, key: str) -> int | None:
    if reference is None or reference.version in (None, "", "latest", "@latest"):
        return None
    text = str(reference.version)
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise not_found(f"Version {text[:16]} of agent {reference.name[:63]}")
    return int(text)
