"""Secrets that a principal holds: random, shown once or kept in a private file, stored only as a hash.

A secret has 256 random bits, so a plain hash cannot be searched; looking a hash up by equality tells nothing about others.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path


def new_secret() -> str:
    """43 URL-safe characters."""
    return secrets.token_urlsafe(32)


def hash_secret(secret: str) -> bytes:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).digest()


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_name(f".{path.name}.new")
    partial.touch(mode=0o600)
    partial.chmod(0o600)
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
