from __future__ import annotations

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from cupola.storage import principals


def test_a_principal_is_found_by_name_and_by_secret(connection: Connection) -> None:
    made = principals.create_principal(connection, "ada", b"hash", administrator=True, now=1)
    assert (made.name, made.administrator) == ("ada", True)
    assert principals.principal_by_name(connection, "ada") == made
    assert principals.principal_by_secret(connection, b"hash") == made


def test_an_unknown_name_or_secret_is_nobody(connection: Connection) -> None:
    principals.create_principal(connection, "ada", b"hash", administrator=False, now=1)
    assert principals.principal_by_name(connection, "bob") is None
    assert principals.principal_by_secret(connection, b"other") is None
    assert principals.principal_by_secret(connection, b"") is None


@pytest.mark.parametrize(("name", "secret"), [("ada", b"other"), ("bob", b"hash")])
def test_names_and_secrets_are_unique(connection: Connection, name: str, secret: bytes) -> None:
    principals.create_principal(connection, "ada", b"hash", administrator=False, now=1)
    with pytest.raises(IntegrityError):
        principals.create_principal(connection, name, secret, administrator=True, now=1)


def test_projects_are_unique(connection: Connection) -> None:
    principals.create_project(connection, "third", 1)
    assert principals.project_names(connection) == {"default", "other", "third"}
    with pytest.raises(IntegrityError):
        principals.create_project(connection, "third", 1)
