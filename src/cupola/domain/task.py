"""Tasks: what an agent works on, and who holds the lease of it (container contract, section 4.14).

A task changes by `new_task` and `patched` alone, which are functions of the task, the request and the time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import msgspec

from cupola.domain.errors import CupolaError, etag_mismatch, invalid_request
from cupola.domain.task_fields import (
    Json,
    check_attachments,
    check_new,
    check_patch,
    check_payload,
    check_status,
    merged,
)

TRANSITIONS: dict[str, frozenset[str]] = {
    "pending": frozenset({"in_progress", "completed"}),
    "in_progress": frozenset({"pending", "in_progress", "suspended", "completed"}),
    "suspended": frozenset({"pending", "in_progress", "suspended", "completed"}),
    "completed": frozenset({"completed"}),
}
LEASE_SECONDS = range(10, 3601)
_LEASE_TEXT = 256


@dataclass(frozen=True)
class LeaseRequest:
    """Who asks for a lease, and for how many seconds; 0 lets the one that it holds expire.

    Raises CupolaError (400) when it is made of anything else.
    """

    owner: str
    instance_id: str
    seconds: int

    def __post_init__(self) -> None:
        for name, value in (("lease_owner", self.owner), ("lease_instance_id", self.instance_id)):
            if not value.strip() or len(value) > _LEASE_TEXT:
                raise invalid_request(f"{name}: expected 1 to {_LEASE_TEXT} characters.", name)
        if self.seconds != 0 and self.seconds not in LEASE_SECONDS:
            raise _bad_duration("expected 0, or 10 to 3600 seconds")


@dataclass(frozen=True)
class Lease:
    """Who works on a task and until when. Times are ISO 8601 with an offset.

    `generation` grows with each new holder, `expiry_count` with each that came after the lease had expired.
    """

    owner: str
    instance_id: str
    generation: int
    expires_at: str
    expiry_count: int
    heartbeat_at: str

    def is_of(self, request: LeaseRequest) -> bool:
        """Whether the one who asks is the holder."""
        return (self.owner, self.instance_id) == (request.owner, request.instance_id)

    def has_expired(self, now: datetime) -> bool:
        """Whether anybody may take it."""
        return datetime.fromisoformat(self.expires_at) <= now


@dataclass(frozen=True)
class Task:
    """Times are ISO 8601 with an offset. `etag` is of this very state."""

    id: str
    agent_name: str
    session_id: str
    status: str
    etag: str
    created_at: str
    updated_at: str
    title: str | None = None
    description: str | None = None
    lease: Lease | None = None
    payload: Any = None
    tags: dict[str, str] | None = None
    error: Json | None = None
    suspension_reason: str | None = None
    source: Json | None = None
    attachments: Json | None = None
    started_at: str | None = None
    completed_at: str | None = None

    def to_wire(self) -> Json:
        """`object: "task"`."""
        fields: Json = msgspec.to_builtins(self)
        return {"object": "task", **fields}


@dataclass(frozen=True)
class Moment:
    """When a task is written, and the ETag it gets."""

    now: datetime
    etag: str

    @property
    def text(self) -> str:
        return self.now.isoformat()


def new_task(fields: Json, lease: LeaseRequest | None, spare_id: str, moment: Moment) -> Task:
    """The task that a caller asks for; `spare_id` is for one that brings no id. Raises CupolaError (400)."""
    check_new(fields)
    status = check_status(fields.get("status") or "pending")
    if status not in ("pending", "in_progress"):
        raise invalid_request("status: a task begins as pending or in_progress.", "status")
    if lease is not None and status == "pending":
        raise invalid_request("A pending task has no lease.", "lease_owner")
    if lease is not None and lease.seconds == 0:
        raise _bad_duration("a lease begins with a duration")
    return Task(
        id=fields.get("id") or spare_id,
        agent_name=fields["agent_name"],
        session_id=fields["session_id"],
        status=status,
        etag=moment.etag,
        created_at=moment.text,
        updated_at=moment.text,
        title=fields.get("title"),
        description=fields.get("description"),
        lease=None if lease is None else _granted(lease, moment, 0, 0),
        payload=fields.get("payload"),
        tags=merged(None, fields.get("tags")),
        source=fields.get("source"),
        attachments=merged(None, fields.get("attachments")),
        started_at=moment.text if status == "in_progress" else None,
    )


def patched(task: Task, patch: Json, lease: LeaseRequest | None, if_match: str | None, moment: Moment) -> Task:
    """The task after a merge patch; the very same object when nothing changes. Raises CupolaError (400, 409, 412)."""
    check_etag(task, if_match)
    check_patch(patch)
    wanted = patch.get("status")
    target = task.status if wanted is None else check_status(wanted)
    if patch.get("suspension_reason") is not None and target != "suspended":
        raise invalid_request("suspension_reason: only a suspended task has one.", "suspension_reason")
    if task.status == "completed":
        if lease is None and target == "completed" and not patch.keys() - {"status"}:
            return task
        raise CupolaError("task_immutable", "A completed task does not change.", status=409)
    if wanted is not None and target not in TRANSITIONS[task.status]:
        text = f"A task cannot go from {task.status} to {target}."
        raise CupolaError("invalid_state_transition", text, status=409)
    changed = replace(
        task,
        status=target,
        lease=_lease_after(task, target, lease, moment),
        suspension_reason=_reason_after(task, target, patch),
        started_at=task.started_at or (moment.text if target == "in_progress" else None),
        completed_at=moment.text if target == "completed" else None,
        updated_at=moment.text,
        etag=moment.etag,
    )
    return _with_content(changed, patch)


def check_etag(task: Task, if_match: str | None) -> None:
    """Raises CupolaError (412) when the caller has read another state than this."""
    if if_match is not None and if_match.strip('"') != task.etag:
        raise etag_mismatch(f"Task {task.id}", task.etag)


def check_deletable(task: Task, if_match: str | None, *, force: bool) -> None:
    """Raises CupolaError (400, 412) when the task must stay."""
    check_etag(task, if_match)
    if task.status != "completed" and not force:
        raise invalid_request(f"The task is {task.status}; delete it with force=true.", "force")


def _lease_after(task: Task, target: str, request: LeaseRequest | None, moment: Moment) -> Lease | None:
    held, changes = task.lease, target != task.status
    gives_back = changes and (task.status, target) == ("in_progress", "pending")
    if gives_back and (request is None or held is None or not held.is_of(request)):
        raise _held_by_another()
    if request is None:
        return held if target == "in_progress" else None
    if changes and request.seconds == 0:
        raise _bad_duration("a lease does not expire together with a change of status")
    if gives_back:
        return None
    if target != "in_progress":
        raise invalid_request(f"A {target} task has no lease.", "lease_owner")
    if request.seconds == 0:
        return _expired(held, request, moment)
    return _taken(held, request, moment)


def _expired(held: Lease | None, request: LeaseRequest, moment: Moment) -> Lease:
    if held is None:
        raise _bad_duration("there is no lease that could expire")
    if not held.is_of(request) and not held.has_expired(moment.now):
        raise _held_by_another()
    return replace(held, expires_at=moment.text, heartbeat_at=moment.text)


def _taken(held: Lease | None, request: LeaseRequest, moment: Moment) -> Lease:
    """The holder renews. Another instance of the same owner, such as a restarted sandbox, takes over at once; another owner
    once the lease has expired."""
    if held is None:
        return _granted(request, moment, 0, 0)
    if held.is_of(request):
        return _granted(request, moment, held.generation, held.expiry_count)
    expired = held.has_expired(moment.now)
    if held.owner != request.owner and not expired:
        raise _held_by_another()
    return _granted(request, moment, held.generation + 1, held.expiry_count + expired)


def _granted(request: LeaseRequest, moment: Moment, generation: int, expiry_count: int) -> Lease:
    expires = moment.now + timedelta(seconds=request.seconds)
    return Lease(request.owner, request.instance_id, generation, expires.isoformat(), expiry_count, moment.text)


def _held_by_another() -> CupolaError:
    return CupolaError("lease_held_by_another", "Another holds the lease of this task.", status=409)


def _bad_duration(why: str) -> CupolaError:
    return invalid_request(f"lease_duration_seconds: {why}.", "lease_duration_seconds")


def _reason_after(task: Task, target: str, patch: Json) -> str | None:
    if target != "suspended":
        return None
    if task.status == "suspended" and "suspension_reason" not in patch:
        return task.suspension_reason
    reason: str | None = patch.get("suspension_reason")
    return reason


def _with_content(task: Task, patch: Json) -> Task:
    if "payload" in patch:
        payload = patch["payload"]
        if isinstance(payload, dict) and isinstance(task.payload, dict):
            payload = {**task.payload, **payload}
        check_payload(payload)
        task = replace(task, payload=payload)
    if "tags" in patch:
        tags = merged(task.tags, patch["tags"])
        check_patch({"tags": tags})
        task = replace(task, tags=tags)
    if "attachments" in patch:
        attachments = merged(task.attachments, patch["attachments"])
        check_attachments(attachments, sizes=False)
        task = replace(task, attachments=attachments)
    if "error" in patch:
        error = patch["error"]
        task = replace(task, error=None if error is None else {**error, "code": error.get("code") or "error"})
    return task
