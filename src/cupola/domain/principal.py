"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    """A person or program that the platform knows."""

    id: str
    name: str
    administrator: bool


@dataclass(frozen=True)
class SandboxPrincipal:
    """A sandbox that calls the platform back: of which agent, and for which session."""

    project: str
    agent_key: int
    session_guid: str

    @property
    def id(self) -> str:
        """As tokens name it."""
        return f"sandbox:{self.session_guid}"


@dataclass(frozen=True)
class ServiceCaller:
    """A sandbox that calls for one of its users, or for nobody that it can name when `user` is empty.

    What a user's calls write belongs to that user, in whichever session of the project it is read. What is written without
    one belongs to the session.
    """

    sandbox: SandboxPrincipal
    user: str

    @property
    def owner(self) -> str:
        """Whose is what this caller writes. No two projects have an owner in common."""
        return f"{self.sandbox.project}/{self.user}" if self.user else self._session

    @property
    def visible(self) -> tuple[str, ...]:
        """The owners whose rows this caller may see, its own first."""
        return (self.owner, self._session) if self.user else (self._session,)

    @property
    def _session(self) -> str:
        return f"{self.sandbox.project}//{self.sandbox.session_guid}"
