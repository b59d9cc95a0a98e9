"""How a task changes (contract section 4.14): pure functions of the task, the request and the time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, cast

from cupola_agent.stores.base import ConflictError, Json, PreconditionFailedError
from cupola_agent.tasks import limits
from cupola_agent.tasks.base import Lease, LeaseRequest, Status, Task

TRANSITIONS: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"in_progress", "completed"}),
    "in_progress": frozenset({"pending", "in_progress", "suspended", "completed"}),
    "suspended": frozenset({"pending", "in_progress", "suspended", "completed"}),
    "completed": frozenset({"completed"}),
}
_WITHOUT_LEASE = ("pending", "suspended", "completed")
_MUTABLE = frozenset({"status", "payload", "tags", "attachments", "error", "suspension_reason"})
_IMMUTABLE = ("id", "agent_name", "session_id", "title", "description", "source")


@dataclass(frozen=True, slots=True)
class Moment:
    """When a task is written, and the ETag it gets."""

    now: datetime
    etag: str

    @property
    def text(self) -> str:
        return self.now.isoformat()


def new_task(fields: Json, lease: LeaseRequest | None, task_id: str, moment: Moment) -> Task:
    """Raises RefusedError for anything wrong. `task_id` is for a task that brings none."""
    task_id = fields.get("id") or task_id
    limits.check_id(task_id)
    limits.check_text(fields, "agent_name", required=True)
    limits.check_text(fields, "session_id", required=True)
    limits.check_text(fields, "title")
    limits.check_text(fields, "description")
    limits.check_tags(fields.get("tags"))
    limits.check_payload(fields.get("payload"))
    limits.check_source(fields.get("source"))
    limits.check_attachments(fields.get("attachments"))
    limits.check_lease(lease)
    status = _status(fields.get("status") or "pending")
    if status not in ("pending", "in_progress"):
        limits.refuse("a task begins as pending or in_progress", "status")
    if lease is not None and status == "pending":
        limits.refuse("a pending task has no lease", "lease_owner")
    if lease is not None and lease.duration_seconds == 0:
        limits.refuse("a lease begins with a duration", "lease_duration_seconds")
    return Task(
        id=task_id,
        agent_name=fields["agent_name"],
        session_id=fields["session_id"],
        status=status,
        etag=moment.etag,
        created_at=moment.text,
        updated_at=moment.text,
        title=fields.get("title"),
        description=fields.get("description"),
        lease=None if lease is None else _granted(lease, moment, generation=0, expiry_count=0),
        payload=fields.get("payload"),
        tags=_merged(None, fields.get("tags")),
        source=fields.get("source"),
        attachments=_merged(None, fields.get("attachments")),
        started_at=moment.text if status == "in_progress" else None,
    )


def patched(task: Task, patch: Json, lease: LeaseRequest | None, if_match: str | None, moment: Moment) -> Task:
    """The task after the patch; the same object when nothing changes.

    Raises RefusedError, ConflictError and PreconditionFailedError.
    """
    check_etag(task, if_match)
    _check_patch(patch)
    limits.check_lease(lease)
    wanted = patch.get("status")
    target = task.status if wanted is None else _status(wanted)
    if patch.get("suspension_reason") is not None and target != "suspended":
        limits.refuse("suspension_reason belongs to the status suspended", "suspension_reason")
    if task.status == "completed":
        if lease is None and not patch.keys() - {"status"} and target == "completed":
            return task
        raise ConflictError("A completed task does not change.", code="task_immutable")
    if wanted is not None and target not in TRANSITIONS[task.status]:
        message = f"A task cannot go from {task.status} to {target}."
        raise ConflictError(message, code="invalid_state_transition")
    changed = replace(
        task,
        status=target,
        lease=_next_lease(task, target, lease, moment),
        suspension_reason=_next_reason(task, target, patch),
        started_at=task.started_at or (moment.text if target == "in_progress" else None),
        completed_at=moment.text if target == "completed" else None,
        updated_at=moment.text,
        etag=moment.etag,
    )
    return _with_content(changed, patch)


def check_etag(task: Task, if_match: str | None) -> None:
    if if_match is not None and if_match != task.etag:
        raise PreconditionFailedError("The task has changed since it was read.", etag=task.etag)


def check_deletable(task: Task, *, force: bool, if_match: str | None) -> None:
    check_etag(task, if_match)
    if task.status != "completed" and not force:
        limits.refuse("a task that is not completed is deleted with force=true only", "force")


def has_expired(lease: Lease | None, now: datetime) -> bool:
    return lease is None or datetime.fromisoformat(lease.expires_at) <= now


def _next_lease(task: Task, target: Status, request: LeaseRequest | None, moment: Moment) -> Lease | None:
    held, changes = task.lease, target != task.status
    if changes and task.status == "in_progress" and target == "pending":
        if request is None or held is None or not held.held_by(request):
            raise _held_by_another()
        if request.duration_seconds == 0:
            limits.refuse("a lease does not expire together with a change of status", "lease_duration_seconds")
        return None
    if request is None:
        return None if target in _WITHOUT_LEASE else held
    if changes and target in ("suspended", "completed"):
        limits.refuse(f"a task that becomes {target} has no lease", "lease_owner")
    if changes and request.duration_seconds == 0:
        limits.refuse("a lease does not expire together with a change of status", "lease_duration_seconds")
    if request.duration_seconds == 0:
        if held is None:
            limits.refuse("there is no lease to let expire", "lease_duration_seconds")
        if not has_expired(held, moment.now) and not held.held_by(request):
            raise _held_by_another()
        return replace(held, expires_at=moment.text, heartbeat_at=moment.text)
    if target != "in_progress":
        limits.refuse("only a task in progress has a lease", "lease_owner")
    return _taken(held, request, moment)


def _taken(held: Lease | None, request: LeaseRequest, moment: Moment) -> Lease:
    """The holder renews; another instance of the same owner takes over at once, another owner after expiry."""
    if held is None:
        return _granted(request, moment, generation=0, expiry_count=0)
    if held.held_by(request):
        return _granted(request, moment, generation=held.generation, expiry_count=held.expiry_count)
    expired = has_expired(held, moment.now)
    if held.owner != request.owner and not expired:
        raise _held_by_another()
    return _granted(request, moment, generation=held.generation + 1, expiry_count=held.expiry_count + expired)


def _granted(request: LeaseRequest, moment: Moment, *, generation: int, expiry_count: int) -> Lease:
    return Lease(
        owner=request.owner,
        instance_id=request.instance_id,
        generation=generation,
        expires_at=(moment.now + timedelta(seconds=request.duration_seconds)).isoformat(),
        expiry_count=expiry_count,
        heartbeat_at=moment.text,
    )


def _held_by_another() -> ConflictError:
    return ConflictError("Another holds the lease of this task.", code="lease_held_by_another")


def _next_reason(task: Task, target: Status, patch: Json) -> str | None:
    if target != "suspended":
        return None
    if "suspension_reason" in patch or task.status != "suspended":
        return patch.get("suspension_reason")
    return task.suspension_reason


def _with_content(task: Task, patch: Json) -> Task:
    if "payload" in patch:
        payload = patch["payload"]
        if isinstance(payload, dict) and isinstance(task.payload, dict):
            payload = {**task.payload, **payload}
        limits.check_payload(payload)
        task = replace(task, payload=payload)
    if "tags" in patch:
        tags = _merged(task.tags, patch["tags"])
        limits.check_tags(tags)
        task = replace(task, tags=tags)
    if "attachments" in patch:
        attachments = _merged(task.attachments, patch["attachments"])
        if attachments is not None and len(attachments) > limits.MAX_ATTACHMENTS:
            limits.refuse(f"a task has at most {limits.MAX_ATTACHMENTS} attachments", "attachments")
        task = replace(task, attachments=attachments)
    if "error" in patch:
        error = patch["error"]
        task = replace(task, error=None if error is None else {**error, "code": error.get("code") or "error"})
    return task


def _merged(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """By key, where null deletes; null for the whole deletes all."""
    if new is None:
        return None
    merged = {key: value for key, value in {**(old or {}), **new}.items() if value is not None}
    return merged or None


def _check_patch(patch: Json) -> None:
    for name in _IMMUTABLE:
        if patch.get(name) is not None:
            limits.refuse(f"{name} cannot be changed", name)
    unknown = patch.keys() - _MUTABLE - set(_IMMUTABLE)
    if unknown:
        limits.refuse(f"unknown field {sorted(unknown)[0]!r}")
    limits.check_tags(patch.get("tags"))
    limits.check_error(patch.get("error"))
    limits.check_attachments(patch.get("attachments"))
    limits.check_text(patch, "suspension_reason")


def _status(value: Any) -> Status:
    if value == "failed":
        limits.refuse("there is no status failed: a failure is a completed task with an error", "status")
    if not isinstance(value, str) or value not in TRANSITIONS:
        limits.refuse(f"status must be one of {', '.join(TRANSITIONS)}", "status")
    return cast("Status", value)
