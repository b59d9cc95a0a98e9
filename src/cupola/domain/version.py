"""Agents and their versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cupola.domain.definition import Definition
from cupola.domain.errors import CupolaError
from cupola.domain.session import SessionUpgrade


class VersionStatus(StrEnum):
    """Where a version is in its life."""

    CREATING = "creating"
    ACTIVE = "active"
    FAILED = "failed"
    DELETING = "deleting"


_MOVES: Mapping[VersionStatus, frozenset[VersionStatus]] = {
    VersionStatus.CREATING: frozenset({VersionStatus.ACTIVE, VersionStatus.FAILED, VersionStatus.DELETING}),
    VersionStatus.ACTIVE: frozenset({VersionStatus.DELETING}),
    VersionStatus.FAILED: frozenset({VersionStatus.DELETING}),
    VersionStatus.DELETING: frozenset(),
}


class IllegalMove(Exception):
    """A status was to change in a way that the table of moves does not have."""


def check_move(now: VersionStatus, then: VersionStatus) -> None:
    """Raises IllegalMove unless a version may go from one status to the other."""
    if then not in _MOVES[now]:
        expected = ", ".join(sorted(_MOVES[now])) or "nothing"
        raise IllegalMove(f"a version that is {now} may become {expected}, not {then}")


@dataclass(frozen=True)
class Identity:
    """The identity of an agent, the same for all its versions."""

    principal_id: str
    client_id: str
    blueprint_id: str


@dataclass(frozen=True)
class Agent:
    """A name with an endpoint, an identity and versions. Times are seconds since the epoch."""

    key: int
    project: str
    name: str
    guid: str
    identity: Identity
    created_at: int
    session_upgrade: SessionUpgrade = SessionUpgrade.ON_IDLE


@dataclass(frozen=True)
class Version:
    """An immutable definition. Only status, error and what provisioning found out (`digest`) ever change."""

    key: int
    agent: Agent
    number: int
    definition: Definition
    metadata: Mapping[str, str]
    description: str | None
    status: VersionStatus
    error_code: str | None
    error_message: str | None
    digest: str | None
    created_at: int

    @property
    def name(self) -> str:
        """What a person calls it: `echo:3`."""
        return f"{self.agent.name}:{self.number}"


@dataclass(frozen=True)
class VersionEvent:
    """One line of a version's event log. `at` is in milliseconds since the epoch, `duration` in milliseconds."""

    at: int
    step: str
    message: str
    duration: float | None
    failed: bool = False


def require_active(version: Version) -> None:
    """Raises CupolaError (400) with the reason when a version cannot serve requests."""
    if version.status is VersionStatus.ACTIVE:
        return
    if version.status is VersionStatus.CREATING:
        raise CupolaError(
            "agent_version_not_ready",
            f"Agent version {version.name} is still being provisioned; poll it until its status is active.",
        )
    if version.status is VersionStatus.FAILED:
        raise CupolaError(
            "agent_version_failed",
            f"Agent version {version.name} failed: {version.error_message} "
            f"See `cupola versions show {version.agent.name} {version.number}`.",
        )
    raise CupolaError("agent_version_deleting", f"Agent version {version.name} is being deleted.")
