"""One database, reached from the event loop: writes in groups on one thread, reads on a few others.

A write is durable when its `await` returns. Writes that arrive while one is being committed share the next commit,
so many callers cost one flush to disk.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event

from cupola.domain.errors import CupolaError

Result = TypeVar("Result")

GROUP_LIMIT = 256
"""The most writes that share one commit."""
READERS = 4


def open_engine(path: Path) -> Engine:
    """An engine for a SQLite file: write-ahead log, every commit flushed to disk, foreign keys enforced."""
    engine = create_engine(URL.create("sqlite", database=str(path)), pool_size=READERS + 1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: object) -> None:
        # The driver's own transaction handling would begin late and break savepoints; SQLAlchemy begins them instead.
        connection.isolation_level = None
        for statement in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            connection.execute(f"PRAGMA {statement}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


class _Write:
    def __init__(self, function: Callable[[Connection], Any]) -> None:
        self.function = function
        self.outcome: Future[Any] = Future()


class Database:
    """Runs functions that take a SQLAlchemy `Connection`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._writer = threading.Thread(target=self._write_loop, name="database-writer", daemon=True)
        self._writer.start()
        self._readers = ThreadPoolExecutor(READERS, "database-reader")

    async def write(self, function: Callable[[Connection], Result]) -> Result:
        """Run `function` in a transaction; returns its result once that is on disk. Its exceptions undo only itself."""
        if self._closed:
            raise RuntimeError("the database is closed")
        write = _Write(function)
        self._writes.put(write)
        result: Result = await asyncio.wrap_future(write.outcome)
        return result

    async def read(self, function: Callable[[Connection], Result]) -> Result:
        """Run `function` on a consistent view of what is committed."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, function)

    def _read(self, function: Callable[[Connection], Result]) -> Result:
        with self.engine.connect() as connection:
            return function(connection)

    def close(self) -> None:
        """Finish the writes that were asked for and close. Blocks for as long as they take."""
        self._closed = True
        self._writes.put(None)
        self._writer.join()
        self._readers.shutdown()
        self.engine.dispose()

    def _write_loop(self) -> None:
        while (first := self._writes.get()) is not None:
            group = [first]
            while len(group) < GROUP_LIMIT:
                try:
                    following = self._writes.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    self._writes.put(None)
                    break
                group.append(following)
            self._commit(group)

    def _commit(self, group: list[_Write]) -> None:
        # Nobody is told anything before the commit, not even of a failure: what made one write fail may be another
        # write of the same group, and whoever looks for it must find it.
        outcomes: list[Callable[[], None]] = []
        running: list[_Write] = []
        try:
            with self.engine.begin() as connection:
                for write in group:
                    # A caller that was cancelled before its turn has asked for nothing.
                    if not write.outcome.set_running_or_notify_cancel():
                        continue
                    running.append(write)
                    try:
                        with connection.begin_nested():
                            result = write.function(connection)
                    except Exception as error:
                        outcomes.append(partial(write.outcome.set_exception, _explain(error)))
                    else:
                        outcomes.append(partial(write.outcome.set_result, result))
        except Exception as error:
            outcomes = [partial(write.outcome.set_exception, _explain(error)) for write in running]
        for tell in outcomes:
            tell()


def _explain(error: Exception) -> Exception:
    """What a caller can understand of a failure of the database, or the failure itself."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode == sqlite3.SQLITE_FULL:
        explained = CupolaError(
            "disk_full",
            "The disk that holds the server's data is full; nothing was changed. Free some space.",
            status=507,
        )
        explained.__cause__ = error
        return explained
    return error
