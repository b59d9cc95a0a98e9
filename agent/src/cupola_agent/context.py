"""What a handler may know about the call it answers (contract sections 3.1 and 6)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cupola_agent.http import Request


@dataclass(frozen=True, slots=True)
class CallContext:
    """What both protocols know.

    `user_id` is the opaque key of the user, `call_id` the capability to send along on calls to the platform
    (both "" outside a platform); `client_headers` are the caller's `x-client-*` headers, in lower case.
    """

    request_id: str
    session_id: str
    user_id: str
    call_id: str
    client_headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ResponseContext(CallContext):
    """The context of one response. `created_at` is in seconds of the Unix epoch."""

    response_id: str
    created_at: int
    conversation_id: str | None = None
    previous_response_id: str | None = None
    query_parameters: Mapping[str, str] = field(default_factory=dict)
    input_items: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class InvocationContext(CallContext):
    """The context of one invocation."""

    invocation_id: str


def common_fields(request: Request, session_id: str) -> dict[str, Any]:
    """The values of CallContext that come from the request."""
    headers = request.headers
    return {
        "request_id": request.request_id,
        "session_id": session_id,
        "user_id": headers.get("x-agent-user-id", ""),
        "call_id": headers.get("x-agent-foundry-call-id", ""),
        "client_headers": {name: value for name, value in headers.items() if name.startswith("x-client-")},
    }
