from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, text
from sqlalchemy.exc import IntegrityError

from cupola.storage.database import GROUP_LIMIT, Database, open_engine
from cupola.storage.principals import create_project, project_names
from cupola.storage.schema import version_events


def add(connection: Connection, name: str) -> str:
    create_project(connection, name, 1)
    return name


def adding(name: str) -> Callable[[Connection], str]:
    return lambda connection: add(connection, name)


class Gate:
    """A write that keeps the writer busy until it is let go, so that the writes after it form one group."""

    def __init__(self, database: Database) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self.task = asyncio.ensure_future(database.write(self._hold))

    def _hold(self, _: Connection) -> None:
        self.entered.set()
        self.released.wait(20)


async def gate(database: Database) -> Gate:
    made = Gate(database)
    assert await asyncio.to_thread(made.entered.wait, 20)
    return made


async def test_a_write_returns_its_result_and_later_reads_see_it(database: Database) -> None:
    assert await database.write(adding("new")) == "new"
    assert "new" in await database.read(project_names)


async def test_a_write_that_fails_undoes_only_itself(database: Database) -> None:
    held = await gate(database)

    def half(connection: Connection) -> None:
        add(connection, "half")
        raise LookupError("on purpose")

    writes = [
        asyncio.ensure_future(database.write(adding("before"))),
        asyncio.ensure_future(database.write(half)),
        asyncio.ensure_future(database.write(adding("before"))),
        asyncio.ensure_future(database.write(adding("after"))),
    ]
    await asyncio.sleep(0)
    held.released.set()
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert outcomes[0] == "before"
    assert isinstance(outcomes[1], LookupError)
    assert isinstance(outcomes[2], IntegrityError)
    assert outcomes[3] == "after"
    await held.task
    assert await database.read(project_names) == {"default", "other", "before", "after"}


async def test_a_write_that_is_cancelled_before_its_turn_does_nothing(database: Database) -> None:
    held = await gate(database)
    cancelled = asyncio.ensure_future(database.write(adding("cancelled")))
    kept = asyncio.ensure_future(database.write(adding("kept")))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    held.released.set()
    await asyncio.gather(held.task, kept)
    assert await database.read(project_names) == {"default", "other", "kept"}


async def test_the_writer_goes_on_after_a_caller_left_during_its_write(database: Database) -> None:
    held = await gate(database)
    held.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held.task
    held.released.set()
    await database.write(adding("next"))
    assert "next" in await database.read(project_names)


async def test_a_read_sees_nothing_that_is_not_committed(database: Database) -> None:
    written, released = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        add(connection, "slow")
        written.set()
        released.wait(20)

    writing = asyncio.ensure_future(database.write(slow))
    assert await asyncio.to_thread(written.wait, 20)
    assert "slow" not in await database.read(project_names)
    released.set()
    await writing
    assert "slow" in await database.read(project_names)


async def test_a_read_that_fails_harms_no_other(database: Database) -> None:
    def broken(connection: Connection) -> None:
        connection.execute(text("SELECT * FROM nowhere"))

    for _ in range(8):
        with pytest.raises(Exception, match="no such table: nowhere"):
            await database.read(broken)
    assert await database.read(project_names) == {"default", "other"}


async def test_a_read_cannot_leave_changes_behind(database: Database) -> None:
    await database.read(adding("read"))
    assert "read" not in await database.read(project_names)


async def test_more_writes_at_once_than_a_group_holds(database: Database) -> None:
    names = [f"p{number}" for number in range(2 * GROUP_LIMIT + 7)]
    held = await gate(database)
    writes = asyncio.gather(*(database.write(adding(name)) for name in names))
    await asyncio.sleep(0)
    held.released.set()
    assert await writes == names
    assert await database.read(project_names) == {"default", "other", *names}
    await held.task


async def test_close_finishes_the_writes_that_were_asked_for(database_file: Path) -> None:
    database = Database(open_engine(database_file))
    held = await gate(database)
    writes = [asyncio.ensure_future(database.write(adding(name))) for name in "abc"]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(asyncio.to_thread(database.close))
    held.released.set()
    await asyncio.gather(held.task, closing, *writes)
    again = Database(open_engine(database_file))
    assert {"a", "b", "c"} <= await again.read(project_names)
    again.close()


async def test_writes_fail_when_the_commit_fails_and_later_ones_do_not(database: Database) -> None:
    def orphan(connection: Connection) -> None:
        connection.execute(text("PRAGMA defer_foreign_keys=ON"))
        row = {"version_key": 9, "at_milliseconds": 1, "step": "s", "message": "m", "failed": False}
        connection.execute(insert(version_events).values(row))

    with pytest.raises(IntegrityError, match="FOREIGN KEY"):
        await database.write(orphan)
    assert await database.write(adding("later")) == "later"


def test_commits_are_flushed_to_disk_and_foreign_keys_are_enforced(connection: Connection) -> None:
    found = {
        name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
