"""The durable directories of sandboxes: a volume for each session, with the `home` and the `files` that its sandboxes get."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from cupola.sessions.file_listing import DirectoryNames, NamePage
from cupola.sessions.file_removal import remove_tree
from cupola.sessions.file_tree import DIRECTORY, Names
from cupola.sessions.files import FileEntry, SessionFiles

_NAME = re.compile("[a-z0-9-]{1,64}")


class Upload(Protocol):
    """A file on its way in, which appears whole when it is finished. Close it whatever happened. Everything blocks."""

    size: int

    def open(self) -> None: ...
    def write(self, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


class Download(Protocol):
    """A file on its way out; `size` is that at the time it was opened. Close it whatever happened. Everything blocks."""

    size: int

    def open(self) -> None: ...
    def read(self, offset: int, size: int) -> bytes: ...
    def close(self) -> None: ...


class Files(Protocol):
    """The files in the home directory of a volume; described at `SessionFiles`. Everything blocks."""

    def create(self) -> None: ...
    def stat(self, path: Names) -> FileEntry: ...
    def list_directory(self, path: Names, page: NamePage) -> tuple[tuple[FileEntry, ...], str | None]: ...
    def make_directory(self, path: Names) -> bool: ...
    def remove(self, path: Names, recursive: bool, seconds: float) -> bool: ...
    def upload(self, path: Names) -> Upload: ...
    def download(self, path: Names) -> Download: ...


class Volumes(Protocol):
    """All volumes of this installation, by name."""

    def path(self, name: str) -> Path:
        """The host directory of a volume, which need not exist."""

    def files(self, name: str) -> Files:
        """What is in its home directory."""

    def remove(self, name: str) -> None:
        """Remove a volume with all that is in it. Blocks."""

    def remove_all_but(self, names: Collection[str]) -> None:
        """Remove all others. Blocks."""


class LocalVolumes:
    """Volumes below a directory that belongs to this process alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._names = DirectoryNames()

    def path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not the name of a volume: {name[:80]!r}")
        return self._directory / name

    def files(self, name: str) -> SessionFiles:
        return SessionFiles(self.path(name) / "home", self._names)

    def remove(self, name: str) -> None:
        self._remove(self.path(name).name)

    def remove_all_but(self, names: Collection[str]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for entry in self._directory.iterdir():
            if entry.name not in names:
                self._remove(entry.name)

    def _remove(self, name: str) -> None:
        parent = os.open(self._directory, DIRECTORY)
        try:
            with contextlib.suppress(FileNotFoundError):
                remove_tree(name.encode(), parent, math.inf)
        finally:
            os.close(parent)
