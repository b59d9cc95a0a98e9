"""The files from which sandboxes learn whom to trust: a private authority and the public ones."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import certifi

from cupola.sandbox.base import SandboxError

SYSTEM_ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")
LONGEST = 64 * 1024
"""Characters of a private authority."""


def public_roots() -> Path:
    """The authorities that this machine trusts; those of certifi where it has no list."""
    # The machine's own list may hold an organisation's authority, which certifi's does not.
    return SYSTEM_ROOTS if SYSTEM_ROOTS.exists() else Path(certifi.where())


class Authorities:
    """Makes one file for each private authority, in `directory`; sandboxes share it, none can write to it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._making = threading.Lock()

    def file(self, authority: str) -> Path:
        """The file with this authority and the public ones. Blocks for a moment the first time. Raises SandboxError."""
        if len(authority) > LONGEST:
            raise SandboxError("the certificate of the platform is too long")
        path = self._directory / f"authorities-{hashlib.sha256(authority.encode()).hexdigest()[:32]}.pem"
        with self._making:
            if not path.exists():
                partial = path.with_suffix(".new")
                partial.write_text(authority + public_roots().read_text())
                partial.chmod(0o644)
                partial.replace(path)
        return path
