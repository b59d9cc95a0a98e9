"""Tasks in the database, each within the session that made it. Every function runs inside the caller's transaction.

What a task is and how it changes is in `cupola.domain.task`; the columns beside its body are what lists are searched by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, insert, or_, select, update

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.principal import SandboxPrincipal
from cupola.domain.task import LeaseRequest, Moment, Task, check_deletable, new_task, patched
from cupola.storage.agents import check_agent_of
from cupola.storage.paging import Page
from cupola.storage.schema import task_attachments, tasks

Json = dict[str, Any]


@dataclass(frozen=True)
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


def create_task(
    connection: Connection,
    sandbox: SandboxPrincipal,
    fields: Json,
    lease: LeaseRequest | None,
    spare_id: str,
    moment: Moment,
) -> Task:
    """A new task. Raises CupolaError (400, 409)."""
    task = new_task(fields, lease, spare_id, moment)
    check_agent_of(connection, sandbox)
    if _row(connection, sandbox, task.id) is not None:
        raise CupolaError("task_already_exists", f"Task {task.id} already exists.", status=409)
    place = {"agent_key": sandbox.agent_key, "session_guid": sandbox.session_guid}
    new = insert(tasks).values(**place, **_columns(task, moment.now)).returning(tasks.c.key)
    _attach(connection, connection.execute(new).scalar_one(), task.attachments or {})
    return task


def get_task(connection: Connection, sandbox: SandboxPrincipal, task_id: str) -> Task:
    """Raises CupolaError (404)."""
    return _read(connection, sandbox, task_id)[1]


def update_task(
    connection: Connection,
    sandbox: SandboxPrincipal,
    task_id: str,
    patch: Json,
    lease: LeaseRequest | None,
    if_match: str | None,
    moment: Moment,
) -> Task:
    """Change a task, or renew its lease with an empty patch. Raises CupolaError (400, 404, 409, 412)."""
    key, task = _read(connection, sandbox, task_id)
    changed = patched(task, patch, lease, if_match, moment)
    if changed is not task:
        connection.execute(update(tasks).where(tasks.c.key == key).values(**_columns(changed, moment.now)))
        if "attachments" in patch:
            _reattach(connection, key, patch["attachments"], changed.attachments or {})
    return changed


def delete_task(
    connection: Connection, sandbox: SandboxPrincipal, task_id: str, if_match: str | None, *, force: bool
) -> None:
    """Raises CupolaError (400, 404, 412)."""
    key, task = _read(connection, sandbox, task_id)
    check_deletable(task, if_match, force=force)
    connection.execute(delete(tasks).where(tasks.c.key == key))


def list_tasks(
    connection: Connection,
    sandbox: SandboxPrincipal,
    wanted: TaskFilter,
    now: datetime,
    *,
    limit: int,
    order: Literal["asc", "desc"],
    after: str | None,
    with_attachments: bool,
) -> Page[Task]:
    """The session's tasks in the order in which they were made. After an unknown id comes nothing."""
    query = select(tasks).where(tasks.c.session_guid == sandbox.session_guid, *_conditions(wanted, now))
    if after is not None:
        cursor = _row(connection, sandbox, after)
        if cursor is None:
            return Page((), False)
        query = query.where(tasks.c.key < cursor.key if order == "desc" else tasks.c.key > cursor.key)
    key = tasks.c.key.desc() if order == "desc" else tasks.c.key.asc()
    rows = list(connection.execute(query.order_by(key).limit(limit + 1)))
    found = (_whole(connection, row, with_attachments=with_attachments) for row in rows[:limit])
    return Page(tuple(found), len(rows) > limit)


def delete_old_tasks(connection: Connection, before: int, limit: int) -> int:
    """Remove some of the completed tasks that were last written before then; says how many."""
    old = select(tasks.c.key).where(tasks.c.status == "completed", tasks.c.updated_at < before).limit(limit)
    return connection.execute(delete(tasks).where(tasks.c.key.in_(old.scalar_subquery()))).rowcount


def _row(connection: Connection, sandbox: SandboxPrincipal, task_id: str) -> Row[Any] | None:
    query = select(tasks).where(tasks.c.session_guid == sandbox.session_guid, tasks.c.id == task_id)
    return connection.execute(query).first()


def _read(connection: Connection, sandbox: SandboxPrincipal, task_id: str) -> tuple[int, Task]:
    row = _row(connection, sandbox, task_id)
    if row is None:
        raise not_found(f"Task {task_id[:128]}")
    return row.key, _whole(connection, row, with_attachments=True)


def _whole(connection: Connection, row: Row[Any], *, with_attachments: bool) -> Task:
    """The task of a row. Without attachments it has their names."""
    task = msgspec.json.decode(row.body, type=Task)
    mine = task_attachments.c.task_key == row.key
    if with_attachments:
        bodies = connection.execute(select(task_attachments.c.name, task_attachments.c.body).where(mine))
        attachments = {name: msgspec.json.decode(body) for name, body in bodies}
    else:
        attachments = dict.fromkeys(connection.execute(select(task_attachments.c.name).where(mine)).scalars())
    return replace(task, attachments=attachments or None)


def _columns(task: Task, now: datetime) -> dict[str, Any]:
    lease = task.lease
    return {
        "id": task.id,
        "agent_name": task.agent_name,
        "session_id": task.session_id,
        "status": task.status,
        "lease_owner": None if lease is None else lease.owner,
        "lease_expires_at": None if lease is None else datetime.fromisoformat(lease.expires_at).timestamp(),
        "source_type": None if task.source is None else task.source["type"],
        "has_error": task.error is not None,
        "tags": task.tags,
        "body": msgspec.json.encode(replace(task, attachments=None)),
        "updated_at": int(now.timestamp()),
    }


def _conditions(wanted: TaskFilter, now: datetime) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for name in ("agent_name", "session_id", "status", "lease_owner", "source_type", "has_error"):
        value = getattr(wanted, name)
        if value is not None:
            conditions.append(tasks.c[name] == value)
    if wanted.lease_expired is not None:
        expires = tasks.c.lease_expires_at
        expired = or_(expires.is_(None), expires <= now.timestamp())
        conditions.append(expired if wanted.lease_expired else expires > now.timestamp())
    conditions += [tasks.c.tags[key].as_string() == value for key, value in wanted.tags.items()]
    return conditions


def _reattach(connection: Connection, key: int, changes: Json | None, present: Json) -> None:
    mine = task_attachments.c.task_key == key
    if changes is None:
        connection.execute(delete(task_attachments).where(mine))
        return
    connection.execute(delete(task_attachments).where(mine, task_attachments.c.name.in_(list(changes))))
    _attach(connection, key, {name: present[name] for name in changes if name in present})


def _attach(connection: Connection, key: int, attachments: Json) -> None:
    if attachments:
        rows = [{"task_key": key, "name": n, "body": msgspec.json.encode(value)} for n, value in attachments.items()]
        connection.execute(insert(task_attachments), rows)
