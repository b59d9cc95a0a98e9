"""Sessions: a caller-visible id bound to one version, with durable files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cupola.domain.errors import CupolaError
from cupola.domain.ids import SESSION_ID

LIFETIME = 30 * 24 * 3600
"""Seconds after its last use when a session expires."""


class SessionStatus(StrEnum):
    """The statuses of the wire that this platform uses: without a sandbox, with one, and with one that is being made."""

    CREATING = "creating"
    ACTIVE = "active"
    IDLE = "idle"


class SessionUpgrade(StrEnum):
    """What happens to an agent's sessions when a newer version can serve them. Sessions on a version that their caller
    asked for by its number stay on it, whatever the policy.

    `ON_IDLE`: a session follows at its first request after its sandbox was stopped. `DRAIN`: the same, and its sandbox
    is stopped as soon as no request uses it. `NEVER`: it stays on its version.
    """

    ON_IDLE = "on_idle"
    DRAIN = "drain"
    NEVER = "never"


@dataclass(frozen=True)
class Session:
    """`guid` is private and never reused: it names the session's directory and its logs. Times are epoch seconds.

    `pinned` says that the caller asked for this very version. `stopped_at` is when its last sandbox was stopped.
    """

    key: int
    agent_key: int
    version_key: int
    id: str
    guid: str
    owner: str
    pinned: bool
    created_at: int
    last_accessed_at: int
    stopped_at: int | None

    @property
    def expires_at(self) -> int:
        """When it is removed with its files unless it is used again."""
        return self.last_accessed_at + LIFETIME


def check_session_id(value: object) -> str:
    """A session id chosen by a caller. Raises CupolaError (400)."""
    if isinstance(value, str) and SESSION_ID.fullmatch(value):
        return value
    raise CupolaError(
        "bad_request",
        "agent_session_id: expected 8 to 128 letters, digits, hyphens or underscores.",
        param="agent_session_id",
    )
