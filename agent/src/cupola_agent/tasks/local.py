"""Tasks in a SQLite file below the state root, by the same rules as the platform's."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cupola_agent import jsons
from cupola_agent.stores.base import AlreadyExistsError, Json, NotFoundError
from cupola_agent.stores.records import RETENTION_SECONDS, decode
from cupola_agent.stores.sqlite import Database, Schema
from cupola_agent.tasks import limits, rules
from cupola_agent.tasks.base import LeaseRequest, Task, TaskFilter, TaskPage

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "tasks.sqlite"

_SWEPT_AT_ONCE = 50

# Attachments lie apart, so that renewing a lease does not write them again.
_STATEMENTS = (
    """CREATE TABLE tasks (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        agent_name TEXT NOT NULL,
        session_id TEXT NOT NULL,
        status TEXT NOT NULL,
        lease_owner TEXT,
        lease_expires_at REAL,
        source_type TEXT,
        has_error INTEGER NOT NULL,
        tags TEXT,
        updated_at REAL NOT NULL,
        body BLOB NOT NULL
    )""",
    "CREATE INDEX tasks_by_session ON tasks (agent_name, session_id, status)",
    "CREATE INDEX tasks_by_age ON tasks (status, updated_at)",
    """CREATE TABLE attachments (
        task INTEGER NOT NULL,
        name TEXT NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (task, name)
    )""",
)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class LocalTaskStore:
    """A TaskStore in `tasks.sqlite` in the folder; forgets completed tasks after `retention_seconds`."""

    def __init__(
        self,
        folder: Path,
        *,
        retention_seconds: float = RETENTION_SECONDS,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._retention = timedelta(seconds=retention_seconds)
        self._clock = clock
        self._database = Database(folder / FILE_NAME, Schema(1, _STATEMENTS, self._sweep))

    def open(self) -> None:
        """Begins to open the file in the background; the first call does it otherwise."""
        self._database.open()

    async def create(self, fields: Json, lease: LeaseRequest | None = None) -> Task:
        task = rules.new_task(fields, lease, f"task-{os.urandom(8).hex()}", self._moment())

        def job(connection: "sqlite3.Connection") -> None:
            if connection.execute("SELECT 1 FROM tasks WHERE id = ?", (task.id,)).fetchone():
                raise AlreadyExistsError(f"Task '{task.id}' already exists.", code="task_already_exists")
            columns = _columns(task)
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            cursor = connection.execute(f"INSERT INTO tasks ({names}) VALUES ({marks})", (*columns.values(),))  # noqa: S608
            _attach(connection, cursor.lastrowid, task.attachments or {})

        await self._database.write(job)
        return task

    async def get(self, task_id: str) -> Task:
        return await self._database.read(lambda connection: _read(connection, task_id)[1])

    async def update(
        self, task_id: str, patch: Json, lease: LeaseRequest | None = None, *, if_match: str | None = None
    ) -> Task:
        def job(connection: "sqlite3.Connection") -> Task:
            number, task = _read(connection, task_id)
            changed = rules.patched(task, patch, lease, if_match, self._moment())
            if changed is not task:
                columns = _columns(changed)
                places = ", ".join(f"{name} = ?" for name in columns)
                connection.execute(f"UPDATE tasks SET {places} WHERE number = ?", (*columns.values(), number))  # noqa: S608
                _reattach(connection, number, patch, changed)
            return changed

        return await self._database.write(job)

    async def delete(self, task_id: str, *, force: bool = False, if_match: str | None = None) -> None:
        def job(connection: "sqlite3.Connection") -> None:
            number, task = _read(connection, task_id)
            rules.check_deletable(task, force=force, if_match=if_match)
            _remove(connection, number)

        await self._database.write(job)

    async def list(
        self,
        wanted: TaskFilter,
        *,
        limit: int = limits.MAX_PAGE,
        after: str | None = None,
        newest_first: bool = True,
        omit_attachment_values: bool = False,
    ) -> TaskPage:
        limit = limits.check_page(limit)
        limits.check_tags(dict(wanted.tags))

        def job(connection: "sqlite3.Connection") -> TaskPage:
            conditions, values = _conditions(wanted, self._clock())
            if after is not None:
                cursor = "(SELECT number FROM tasks WHERE id = ?)"
                conditions.append("number < " + cursor if newest_first else "number > " + cursor)
                values.append(_searchable(after))
            where = " AND ".join(conditions) or "1"
            order = "DESC" if newest_first else "ASC"
            rows = connection.execute(
                f"SELECT number, body FROM tasks WHERE {where} ORDER BY number {order} LIMIT ?",  # noqa: S608
                (*values, limit + 1),
            ).fetchall()
            tasks = [
                _whole(connection, number, body, with_values=not omit_attachment_values)
                for number, body in rows[:limit]
            ]
            return TaskPage(tuple(tasks), len(rows) > limit)

        return await self._database.read(job)

    async def close(self) -> None:
        await self._database.close()

    def _moment(self) -> rules.Moment:
        return rules.Moment(self._clock(), os.urandom(8).hex())

    def _sweep(self, connection: "sqlite3.Connection") -> bool:
        oldest = (self._clock() - self._retention).timestamp()
        old = connection.execute(
            "SELECT number FROM tasks WHERE status = 'completed' AND updated_at <= ? LIMIT ?", (oldest, _SWEPT_AT_ONCE)
        ).fetchall()
        for (number,) in old:
            _remove(connection, number)
        return len(old) == _SWEPT_AT_ONCE


def _read(connection: "sqlite3.Connection", task_id: str) -> tuple[int, Task]:
    """Raises NotFoundError."""
    row = None
    if task_id.isascii():
        row = connection.execute("SELECT number, body FROM tasks WHERE id = ?", (task_id,)).fetchone()
    if row is None:
        raise NotFoundError(f"Task '{task_id}' not found.")
    number, body = row
    return number, _whole(connection, number, body, with_values=True)


def _whole(connection: "sqlite3.Connection", number: int, body: bytes, *, with_values: bool) -> Task:
    task = Task.from_json(decode(body))
    column = "body" if with_values else "NULL"
    rows = connection.execute(f"SELECT name, {column} FROM attachments WHERE task = ?", (number,))  # noqa: S608
    attachments = {name: None if value is None else decode(value) for name, value in rows}
    return replace(task, attachments=attachments or None)


def _columns(task: Task) -> dict[str, Any]:
    lease = task.lease
    return {
        "id": task.id,
        "agent_name": _searchable(task.agent_name),
        "session_id": _searchable(task.session_id),
        "status": task.status,
        "lease_owner": None if lease is None else _searchable(lease.owner),
        "lease_expires_at": None if lease is None else datetime.fromisoformat(lease.expires_at).timestamp(),
        "source_type": None if task.source is None else _searchable(task.source["type"]),
        "has_error": task.error is not None,
        "tags": json.dumps(task.tags) if task.tags else None,
        "updated_at": datetime.fromisoformat(task.updated_at).timestamp(),
        "body": jsons.encode(replace(task, attachments=None).to_json()),
    }


def _conditions(wanted: TaskFilter, now: datetime) -> tuple[list[str], list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for column in ("agent_name", "session_id", "status", "lease_owner", "source_type"):
        text = getattr(wanted, column)
        if text is not None:
            conditions.append(f"{column} = ?")
            values.append(_searchable(text))
    if wanted.has_error is not None:
        conditions.append("has_error = ?")
        values.append(wanted.has_error)
    if wanted.lease_expired is not None:
        conditions.append("coalesce(lease_expires_at, 0) <= ?" if wanted.lease_expired else "lease_expires_at > ?")
        values.append(now.timestamp())
    for key, value in wanted.tags.items():
        conditions.append("json_extract(tags, ?) = ?")
        values += (f'$."{key}"', _searchable(value))
    return conditions, values


def _searchable(text: str) -> str:
    """The text as SQLite can hold it: half a surrogate pair is escaped."""
    return text.encode(errors="backslashreplace").decode()


def _reattach(connection: "sqlite3.Connection", number: int, patch: Json, task: Task) -> None:
    """Writes what the patch names."""
    if "attachments" not in patch:
        return
    kept = task.attachments or {}
    if patch["attachments"] is None:
        connection.execute("DELETE FROM attachments WHERE task = ?", (number,))
        return
    for name in patch["attachments"]:
        connection.execute("DELETE FROM attachments WHERE task = ? AND name = ?", (number, name))
    _attach(connection, number, {name: kept[name] for name in patch["attachments"] if name in kept})


def _attach(connection: "sqlite3.Connection", number: int | None, attachments: Mapping[str, Any]) -> None:
    rows = [(number, name, jsons.encode(value)) for name, value in attachments.items()]
    connection.executemany("INSERT INTO attachments (task, name, body) VALUES (?, ?, ?)", rows)


def _remove(connection: "sqlite3.Connection", number: int) -> None:
    connection.execute("DELETE FROM attachments WHERE task = ?", (number,))
    connection.execute("DELETE FROM tasks WHERE number = ?", (number,))
