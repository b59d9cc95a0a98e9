"""One SQLite file and the one thread that touches it.

Jobs wait in a queue; the thread takes all that wait and runs them in one transaction, so that under load many writes
share a commit and alone a write waits for nobody. A job sees what every job before it wrote. Each runs in a savepoint:
one that fails leaves no trace and does not disturb the others. A caller is answered after the commit.

Several processes may have the file open: write-ahead log, and a write waits for the other's. With
`synchronous=NORMAL` a commit is not flushed to the disk, which takes milliseconds, but handed to the kernel: it
survives the death of this process (kill -9), and a power cut may take back the last commits but never damages the
file. That is enough for a cache of conversations on a developer's machine or in a sandbox.
"""

import asyncio
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cupola_agent.stores.base import StoreError, UnavailableError

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger("cupola_agent")

Result = TypeVar("Result")

MAX_WAITING = 4096
MAX_BATCH = 256
DEADLINE_SECONDS = 30.0
BUSY_SECONDS = 10.0
SWEEP_SECONDS = 60.0


def state_root(variables: Mapping[str, str]) -> Path:
    """The folder of local state: `AGENTSERVER_STATE_ROOT`, or `.agentserver` in the home directory."""
    chosen = variables.get("AGENTSERVER_STATE_ROOT")
    if chosen:
        return Path(chosen)
    home = variables.get("HOME")
    return (Path(home) if home else Path.home()) / ".agentserver"


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of a file. `sweep` forgets a bounded number of old rows and says whether there may be more."""

    version: int
    statements: tuple[str, ...]
    sweep: "Callable[[sqlite3.Connection], bool]"


@dataclass(slots=True)
class _Job:
    run: "Callable[[sqlite3.Connection], Any]"
    writes: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def answer(self) -> None:
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


@dataclass(slots=True)
class _Close:
    future: asyncio.Future[None]

    def answer(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Database:
    """The file at `path`. Opened by the first job, or by `open` before there is one."""

    def __init__(self, path: Path, schema: Schema, *, max_waiting: int = MAX_WAITING) -> None:
        self._path = path
        self._schema = schema
        self._max_waiting = max_waiting
        self._queue: queue.SimpleQueue[_Job | _Close] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def open(self) -> None:
        """Begins to open the file in the background, so that the first request finds it open."""
        if self._closed:
            raise UnavailableError(f"{self._path.name} is closed.")
        if self._thread is None:
            worker = _Worker(self._path, self._schema, self._queue)
            # A daemon, so that a program that forgets `close` can end; what was acknowledged is in the file.
            self._thread = threading.Thread(target=worker.run, name=f"cupola {self._path.name}", daemon=True)
            self._thread.start()

    async def read(self, job: "Callable[[sqlite3.Connection], Result]") -> Result:
        """The job's result. Raises what the job raises, and UnavailableError when the file cannot be used."""
        return await self._run(job, writes=False)

    async def write(self, job: "Callable[[sqlite3.Connection], Result]") -> Result:
        """As `read`, and what the job writes is committed before this returns."""
        return await self._run(job, writes=True)

    async def close(self) -> None:
        """Ends the thread after the jobs that wait; later ones are refused."""
        if self._closed or self._thread is None:
            self._closed = True
            return
        self._closed = True
        ending = _Close(asyncio.get_running_loop().create_future())
        self._queue.put(ending)
        await ending.future
        self._thread.join()

    async def _run(self, job: "Callable[[sqlite3.Connection], Result]", *, writes: bool) -> Result:
        self.open()
        if self._queue.qsize() >= self._max_waiting:
            raise UnavailableError(f"Too much waits for {self._path.name}.", status=503, code="storage_busy")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._queue.put(_Job(job, writes, future))
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await future
        except TimeoutError:
            raise UnavailableError(f"{self._path.name} did not answer in {DEADLINE_SECONDS:.0f} s.") from None


class _Worker:
    """What the thread does."""

    def __init__(self, path: Path, schema: Schema, jobs: "queue.SimpleQueue[_Job | _Close]") -> None:
        self._path = path
        self._schema = schema
        self._jobs = jobs
        self._connection: sqlite3.Connection | None = None
        self._next_sweep = 0.0

    def run(self) -> None:
        try:
            self._open()
        except Exception:
            # The first job tries again and tells its caller.
            logger.warning("%s could not be opened", self._path, exc_info=True)
        while True:
            batch = self._next_batch()
            ending = batch.pop() if isinstance(batch[-1], _Close) else None
            jobs = [job for job in batch if isinstance(job, _Job)]
            if jobs:
                self._run_together(jobs)
                _answer(jobs)
            if ending is not None:
                if self._connection is not None:
                    self._connection.close()
                _answer([ending])
                return

    def _next_batch(self) -> "list[_Job | _Close]":
        """What waits, in its order; waits for the first. Nothing follows an end."""
        batch = [self._jobs.get()]
        while len(batch) < MAX_BATCH and not isinstance(batch[-1], _Close):
            try:
                batch.append(self._jobs.get_nowait())
            except queue.Empty:
                break
        return batch

    def _run_together(self, jobs: list[_Job]) -> None:
        writes = any(job.writes for job in jobs)
        try:
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE" if writes else "BEGIN")
            try:
                for job in jobs:
                    self._run_one(connection, job)
                if writes:
                    self._sweep(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except Exception as error:
            logger.warning("%s cannot be used", self._path, exc_info=True)
            failure = UnavailableError(f"{self._path.name} cannot be used: {error}")
            for job in jobs:
                job.error = failure
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _run_one(self, connection: "sqlite3.Connection", job: _Job) -> None:
        if job.future.cancelled() and not job.writes:
            return
        connection.execute("SAVEPOINT job")
        try:
            job.result = job.run(connection)
        except Exception as error:
            if not connection.in_transaction:
                raise  # the disk is full or broken, and SQLite has rolled back everything
            connection.execute("ROLLBACK TO job")
            if isinstance(error, StoreError):
                job.error = error
            else:
                logger.warning("a job on %s failed", self._path, exc_info=True)
                job.error = UnavailableError(f"{self._path.name}: {error}")
        connection.execute("RELEASE job")

    def _sweep(self, connection: "sqlite3.Connection") -> None:
        now = time.monotonic()
        if now >= self._next_sweep and not self._schema.sweep(connection):
            self._next_sweep = now + SWEEP_SECONDS

    def _open(self) -> "sqlite3.Connection":
        if self._connection is None:
            self._connection = _connect(self._path, self._schema)
        return self._connection


def _answer(done: "Sequence[_Job | _Close]") -> None:
    """Wakes each loop that waits once, however many answers it gets."""
    loops: dict[asyncio.AbstractEventLoop, list[_Job | _Close]] = {}
    for job in done:
        loops.setdefault(job.future.get_loop(), []).append(job)
    for loop, jobs in loops.items():
        try:
            loop.call_soon_threadsafe(_answer_all, jobs)
        except RuntimeError:
            logger.debug("the loop that waited for a store is closed", exc_info=True)


def _answer_all(jobs: "list[_Job | _Close]") -> None:
    for job in jobs:
        job.answer()


def _connect(path: Path, schema: Schema) -> "sqlite3.Connection":
    import sqlite3

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What users said is in there: readable by this user alone. SQLite gives its log the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        _enter_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        _make_tables(connection, path, schema)
    except BaseException:
        connection.close()
        raise
    return connection


def _enter_wal(connection: "sqlite3.Connection") -> None:
    """SQLite does not wait here for another process that does the same at this moment."""
    import sqlite3

    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _make_tables(connection: "sqlite3.Connection", path: Path, schema: Schema) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in schema.statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={schema.version}")
        elif version != schema.version:
            raise UnavailableError(
                f"{path.name} has version {version} of its tables; this library knows {schema.version}."
            )
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
