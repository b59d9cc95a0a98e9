"""Principals and projects in the database."""

from __future__ import annotations

from sqlalchemy import Connection, insert, select

from cupola.domain.ids import new_guid
from cupola.domain.principal import Principal
from cupola.storage.schema import principals, projects


def create_principal(connection: Connection, name: str, secret_hash: bytes, administrator: bool, now: int) -> Principal:
    """A new principal whose secret has this hash."""
    principal = Principal(new_guid(), name, administrator)
    connection.execute(
        insert(principals).values(
            id=principal.id, name=name, secret_hash=secret_hash, administrator=administrator, created_at=now
        )
    )
    return principal


def principal_by_name(connection: Connection, name: str) -> Principal | None:
    """The principal of that name, or None."""
    row = connection.execute(select(principals).where(principals.c.name == name)).first()
    return None if row is None else Principal(row.id, row.name, row.administrator)


def principal_by_secret(connection: Connection, secret_hash: bytes) -> Principal | None:
    """The principal whose secret has this hash, or None."""
    row = connection.execute(select(principals).where(principals.c.secret_hash == secret_hash)).first()
    return None if row is None else Principal(row.id, row.name, row.administrator)


def create_project(connection: Connection, name: str, now: int) -> None:
    """A new project. Raises IntegrityError when the name is taken."""
    connection.execute(insert(projects).values(name=name, created_at=now))


def project_names(connection: Connection) -> frozenset[str]:
    """All projects."""
    return frozenset(connection.execute(select(projects.c.name)).scalars())
