"""The data folder of an installation, and the one server that may use it at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from cupola.domain.errors import CupolaError

LOCK_ATTEMPTS = 20
LOCK_PAUSE = 0.005


@dataclass(frozen=True)
class ServerState:
    """What a running server writes down for the command line: its process and where it listens."""

    pid: int
    https_port: int
    http_port: int

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def https_url(self) -> str:
        return f"https://localhost:{self.https_port}"


@dataclass(frozen=True)
class DataFolder:
    """Names of what is kept where.

    What the server itself reads and writes is in `server`, which belongs to the user that it runs as. What untrusted code
    makes, or runs from, is beside it and out of its reach when that user is not root.
    """

    path: Path

    @property
    def server(self) -> Path:
        return self.path / "server"

    @property
    def database(self) -> Path:
        return self.server / "cupola.db"

    @property
    def certificates(self) -> Path:
        return self.server / "tls"

    @property
    def certificate_bundle(self) -> Path:
        return self.certificates / "bundle.pem"

    @property
    def signing_key(self) -> Path:
        return self.server / "signing.key"

    @property
    def seal_key(self) -> Path:
        """What call ids and the secrets of sandboxes are sealed with."""
        return self.server / "seal.key"

    @property
    def administrator_secret(self) -> Path:
        return self.server / "administrator.secret"

    @property
    def logs(self) -> Path:
        """Of sessions, a directory for each."""
        return self.server / "logs"

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def volumes(self) -> Path:
        """The durable directories of sandboxes."""
        return self.path / "volumes"

    @property
    def trials(self) -> Path:
        """As volumes, but for starts that only try an image."""
        return self.path / "trials"

    @property
    def sandboxes(self) -> Path:
        return self.path / "sandboxes"

    @property
    def staging(self) -> Path:
        """Where a server without root puts its root together."""
        return self.path / "root"

    @property
    def server_log(self) -> Path:
        return self.path / "server.log"

    def create(self) -> str:
        """Make the folder if it is missing; returns the installation's id, a UUID. Raises CupolaError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.server.mkdir(exist_ok=True, mode=0o700)
            name = self.path / "installation"
            if not name.exists():
                name.write_text(str(uuid.uuid4()))
            return str(uuid.UUID(name.read_text().strip()))
        except (OSError, ValueError) as error:
            raise CupolaError(
                "data_folder",
                f"The data folder {self.path} cannot be used: {error}. Choose another with --data or CUPOLA_DATA.",
            ) from error

    @contextlib.contextmanager
    def lock(self) -> Iterator[IO[str]]:
        """Be the only server of this folder for the length of the block: who has the file that it gives holds the lock.

        Raises CupolaError when there is a server already.
        """
        with (self.path / "lock").open("a") as file:
            # Whoever asks `is_locked` holds the lock for a moment, so that one refusal means nothing.
            for attempt in range(LOCK_ATTEMPTS, 0, -1):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if attempt == 1:
                        raise CupolaError(
                            "already_running", f"A server is already running on {self.path}; `cupola down` stops it."
                        ) from None
                    time.sleep(LOCK_PAUSE)
                else:
                    break
            state = self.server / "server.json"
            # A server that was killed has left its own.
            state.unlink(missing_ok=True)
            try:
                yield file
            finally:
                state.unlink(missing_ok=True)

    def is_locked(self) -> bool:
        """Whether a server runs on this folder."""
        path = self.path / "lock"
        if not path.exists():
            return False
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def write_state(self, state: ServerState) -> None:
        """Say that the server is ready."""
        partial = self.server / ".server.json.new"
        partial.write_text(json.dumps(asdict(state)))
        partial.replace(self.server / "server.json")

    def running_server(self) -> ServerState | None:
        """The server that is ready on this folder, if there is one."""
        if not os.access(self.path, os.R_OK | os.X_OK) and self.path.exists():
            raise CupolaError(
                "data_folder", f"The data folder {self.path} belongs to another user; run this as that user."
            )
        if not self.is_locked():
            return None
        with contextlib.suppress(FileNotFoundError):
            return ServerState(**json.loads((self.server / "server.json").read_text()))
        return None
