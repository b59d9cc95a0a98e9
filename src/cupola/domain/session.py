"""Sessions: a caller-visible id bound to one version, with durable files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cupola.domain.errors import CupolaError
from cupola.domain.ids import SESSION_ID

LIFETIME = 30 * 24 * 3600
"""Seconds after its last use when a session expires."""


class SessionStatus(StrEnum):
    """The statuses of the wire that this platform uses."""

    CREATING = "creating"
    ACTIVE = "active"
    IDLE = "idle"
    FAILED = "failed"


@dataclass(frozen=True)
class Session:
    """`guid` is private and never reused: it names the session's directory and its logs. Times are epoch seconds."""

    key: int
    agent_key: int
    version_key: int
    id: str
    guid: str
    owner: str
    status: SessionStatus
    created_at: int
    last_accessed_at: int


def check_session_id(value: object) -> str:
    """A session id chosen by a caller. Raises CupolaError (400)."""
    if isinstance(value, str) and SESSION_ID.fullmatch(value):
        return value
    raise CupolaError(
        "bad_request",
        "agent_session_id: expected 8 to 128 letters, digits, hyphens or underscores.",
        param="agent_session_id",
    )
