from __future__ import annotations

import stat
from pathlib import Path

from cupola.identity.secret import hash_secret, new_secret, write_private


def test_secrets_differ_and_fit_into_a_header() -> None:
    made = {new_secret() for _ in range(50)}
    assert len(made) == 50
    assert all(len(secret) == 43 and secret.isascii() and secret.isprintable() for secret in made)


def test_a_hash_is_the_same_for_the_same_secret_only() -> None:
    assert hash_secret("a") == hash_secret("a")
    assert hash_secret("a") != hash_secret("b")
    assert b"a-secret" not in hash_secret("a-secret")


def test_a_private_file_is_private_whatever_was_there(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    leftover = tmp_path / ".secret.new"
    leftover.write_text("half")
    leftover.chmod(0o666)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]
