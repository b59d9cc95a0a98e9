"""Which headers pass the gateway, in each direction (container contract, section 3)."""

from __future__ import annotations

from cupola.sandbox.http import Headers

_EXACT = frozenset(
    {b"traceparent", b"tracestate", b"baggage", b"x-ms-client-request-id", b"request-id", b"correlation-context",
     b"request-context", b"ms-cv", b"user-agent"}
)  # fmt: skip
_PREFIXES = (b"x-client-", b"accept", b"content-")
_DROPPED_ANSWERS = frozenset(
    {b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-connection", b"te", b"trailer", b"transfer-encoding",
     b"upgrade", b"server", b"date", b"x-request-id", b"x-agent-session-id", b"x-agent-response-id",
     b"x-agent-invocation-id", b"x-platform-error-detail"}
)  # fmt: skip


def to_agent(headers: Headers, request_id: bytes, user: Headers) -> list[tuple[bytes, bytes]]:
    """The caller's headers that an agent may see, without those that frame the body, and what the platform says of the user.

    Names are in lower case already.
    """
    passed = [
        (name, value)
        for name, value in headers
        if (name in _EXACT or name.startswith(_PREFIXES)) and name != b"content-length"
    ]
    passed.append((b"x-request-id", request_id))
    passed.extend(user)
    return passed


def to_caller(headers: Headers, session_id: str, timing: str) -> list[tuple[bytes, bytes]]:
    """The agent's headers that a caller sees, the session's id, and where the time went beside what the agent says of it."""
    passed = [(name, value) for name, value in headers if name not in _DROPPED_ANSWERS]
    passed.append((b"x-agent-session-id", session_id.encode()))
    passed.append((b"server-timing", timing.encode()))
    return passed
