"""What a store of tasks does, whichever it is (contract section 4.14)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from cupola_agent.stores.base import Json

Status = Literal["pending", "in_progress", "suspended", "completed"]


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """Who asks for a lease and for how long: 10 to 3600 seconds, or 0 to let it expire now."""

    owner: str
    instance_id: str
    duration_seconds: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Who works on a task, and until when; `expires_at` and `heartbeat_at` are ISO 8601 with an offset.

    `generation` grows with each new holder, `expiry_count` with each that took over an expired lease.
    """

    owner: str
    instance_id: str
    generation: int
    expires_at: str
    expiry_count: int
    heartbeat_at: str

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Lease":
        return cls(
            owner=fields["owner"],
            instance_id=fields["instance_id"],
            generation=fields.get("generation", 0),
            expires_at=fields.get("expires_at", ""),
            expiry_count=fields.get("expiry_count", 0),
            heartbeat_at=fields.get("heartbeat_at", ""),
        )

    def held_by(self, request: LeaseRequest) -> bool:
        return (self.owner, self.instance_id) == (request.owner, request.instance_id)


@dataclass(frozen=True, slots=True)
class Task:
    """A task as it was read. Times are ISO 8601 with an offset; `etag` is of this very state."""

    id: str
    agent_name: str
    session_id: str
    status: Status
    etag: str
    created_at: str
    updated_at: str
    title: str | None = None
    description: str | None = None
    lease: Lease | None = None
    payload: Any = None
    tags: Mapping[str, str] | None = None
    error: Mapping[str, Any] | None = None
    suspension_reason: str | None = None
    source: Mapping[str, Any] | None = None
    attachments: Mapping[str, Any] | None = None
    started_at: str | None = None
    completed_at: str | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Task":
        """Raises KeyError when a required field is missing; unknown ones are left out."""
        lease = fields.get("lease")
        known = {name: fields[name] for name in cls.__slots__ if name in fields and name != "lease"}
        missing = {"id", "status", "etag"} - known.keys()
        if missing:
            raise KeyError(missing.pop())
        for name in ("agent_name", "session_id", "created_at", "updated_at"):
            known.setdefault(name, "")
        return cls(**known, lease=Lease.from_json(lease) if lease else None)

    def to_json(self) -> Json:
        return {"object": "task", **asdict(self)}


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks to list: those for which everything given holds."""

    agent_name: str | None = None
    session_id: str | None = None
    status: str | None = None
    lease_owner: str | None = None
    source_type: str | None = None
    has_error: bool | None = None
    lease_expired: bool | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskPage:
    """Some tasks in the order asked for; the id of the last one is the cursor to those that follow."""

    tasks: tuple[Task, ...]
    has_more: bool


class TaskStore(Protocol):
    """Where tasks are kept.

    Wrong requests raise RefusedError (`invalid_request`), a missing task NotFoundError. What the state of the task
    does not allow raises ConflictError, whose `code` is `task_already_exists`, `task_immutable`,
    `invalid_state_transition`, `lease_held_by_another`, `lease_ownership_changed` or `binding_mismatch`; a stale
    ETag raises PreconditionFailedError (`etag_mismatch`).
    """

    async def create(self, fields: Json, lease: LeaseRequest | None = None) -> Task:
        """Creates a task from `id, agent_name, session_id, status, title, description, payload, tags, source,
        attachments`. Without an id it gets one; status is `pending` or `in_progress`, and only the latter has a lease.
        """
        ...

    async def get(self, task_id: str) -> Task: ...

    async def update(
        self, task_id: str, patch: Json, lease: LeaseRequest | None = None, *, if_match: str | None = None
    ) -> Task:
        """Merges `status, payload, tags, attachments, error, suspension_reason`; {} with a lease renews it.

        `payload` is merged at its top level, `tags` and `attachments` by key, where null deletes.
        """
        ...

    async def delete(self, task_id: str, *, force: bool = False, if_match: str | None = None) -> None:
        """Deletes a completed task; any other one needs `force`."""
        ...

    async def list(
        self,
        wanted: TaskFilter,
        *,
        limit: int = 100,
        after: str | None = None,
        newest_first: bool = True,
        omit_attachment_values: bool = False,
    ) -> TaskPage:
        """At most 100 tasks in the order of their creation; nothing follows an unknown cursor."""
        ...

    async def close(self) -> None: ...
