"""What unit tests share: a deadline for each, a migrated database, and a platform on the fake driver."""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from cupola.storage.database import Database, open_engine
from cupola.storage.migrate import migrate
from cupola.storage.principals import create_project
from tests.unit.api.application import Application, Caller
from tests.unit.sessions.world import World

DEADLINE = 30.0
"""Seconds after which a test that hangs has failed."""


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """Let a test that waits for what never comes fail, and not hang."""

    def late(*_: object) -> None:
        raise TimeoutError(f"the test was not done after {DEADLINE:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with all tables and two projects, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "cupola.db"
    engine = open_engine(path)
    migrate(engine)
    with engine.begin() as connection:
        create_project(connection, "default", 1)
        create_project(connection, "other", 1)
    engine.dispose()
    return path


@pytest.fixture
def database_file(migrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(migrated, tmp_path / "cupola.db"))


@pytest.fixture
def connection(database_file: Path) -> Iterator[Connection]:
    """A transaction on a database of the test's own."""
    engine = open_engine(database_file)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


@pytest.fixture
def database(database_file: Path) -> Iterator[Database]:
    database = Database(open_engine(database_file))
    yield database
    database.close()


@pytest.fixture
async def world(tmp_path: Path, database: Database) -> AsyncIterator[World]:
    async with World(tmp_path, database) as world:
        yield world


@pytest.fixture
def application(world: World) -> Application:
    return Application(world)


@pytest.fixture
def ada(application: Application) -> Caller:
    return application.caller()
