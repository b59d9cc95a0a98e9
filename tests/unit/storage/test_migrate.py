from __future__ import annotations

import re
from pathlib import Path

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, create_engine, text

from cupola.storage.database import open_engine
from cupola.storage.migrate import migrate
from cupola.storage.principals import project_names
from cupola.storage.schema import metadata


def statements(connection: Connection) -> dict[str, str]:
    """What SQLite has of each table and index, with spaces and the order of constraints made equal."""
    rows = connection.execute(
        text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'")
    )
    return {
        name: " ".join(sorted(re.sub(r"\s+", " ", sql).replace("( ", "(").split(", ")))
        for name, sql in rows
        if name != "alembic_version"
    }


def test_the_migrations_make_what_the_schema_says(connection: Connection) -> None:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    assert compare_metadata(context, metadata) == []


def test_the_migrations_make_what_the_schema_says_to_the_letter(connection: Connection) -> None:
    fresh: Engine = create_engine("sqlite://")
    with fresh.begin() as expected:
        metadata.create_all(expected)
        assert statements(connection) == statements(expected)
    fresh.dispose()


def test_migrating_twice_keeps_what_is_there(database_file: Path) -> None:
    engine = open_engine(database_file)
    migrate(engine)
    with engine.begin() as connection:
        assert project_names(connection) == {"default", "other"}
    engine.dispose()


def test_the_path_of_the_database_may_hold_any_character(tmp_path: Path) -> None:
    directory = tmp_path / "50% of [it]? #1"
    directory.mkdir()
    engine = open_engine(directory / "cupola.db")
    migrate(engine)
    with engine.begin() as connection:
        assert project_names(connection) == frozenset()
    engine.dispose()
    assert (directory / "cupola.db").exists()
