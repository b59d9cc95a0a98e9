"""Looks up files in the layers of an image, as a process inside would find them. Layers are never trusted."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from cupola.images.extract import is_opaque

LINK_LIMIT = 40
"""As many symbolic links as Linux follows."""
PART_LIMIT = 1000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class ImageFiles:
    """The files of an image. `layers` are directories as overlayfs takes them, lowest first."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self._layers = tuple(reversed(layers))

    def read(self, path: str, limit: int) -> bytes | None:
        """The first `limit` bytes of a regular file; None if there is none. `path` is absolute."""
        found = self._resolve(path)
        if found is None or not stat.S_ISREG(found[2].st_mode):
            return None
        layer, parts, _ = found
        try:
            with _Directory(layer, parts[:-1]) as parent:
                file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            return None
        with open(file, "rb") as opened:  # noqa: PTH123 - a descriptor
            return opened.read(limit) if stat.S_ISREG(os.fstat(file).st_mode) else None

    def status(self, path: str) -> os.stat_result | None:
        """What `path`, which is absolute, leads to; None if it leads nowhere."""
        found = self._resolve(path)
        return None if found is None else found[2]

    def _resolve(self, path: str) -> tuple[Path, list[str], os.stat_result] | None:
        """The layer, the path in it without links, and the status of what `path` leads to."""
        waiting = path.split("/")[::-1]
        parts: list[str] = []
        found: tuple[Path, list[str], os.stat_result] | None = (self._layers[0], [], self._layers[0].stat())
        links = 0
        while waiting:
            part = waiting.pop()
            if part in ("", "."):
                continue
            if found is None or not stat.S_ISDIR(found[2].st_mode):
                return None
            parts = parts[:-1] if part == ".." else [*parts, part]
            found = self._find(parts)
            if found is not None and stat.S_ISLNK(found[2].st_mode):
                links += 1
                target = self._link(found[0], parts)
                if links > LINK_LIMIT or len(waiting) > PART_LIMIT or not target:
                    return None
                waiting += target.split("/")[::-1]
                parts = [] if target.startswith("/") else parts[:-1]
                found = self._find(parts)
        return found

    def _find(self, parts: list[str]) -> tuple[Path, list[str], os.stat_result] | None:
        """What overlayfs shows at a path without links: the topmost that no layer above hides."""
        for layer in self._layers:
            status, hides = _look(layer, parts)
            if status is not None:
                return layer, parts, status
            if hides:
                return None
        return None

    def _link(self, layer: Path, parts: list[str]) -> str:
        try:
            with _Directory(layer, parts[:-1]) as parent:
                return os.readlink(parts[-1], dir_fd=parent)
        except OSError:
            return ""


class _Directory:
    """A handle of a directory in a layer, opened part by part and never through a link. Raises OSError."""

    def __init__(self, layer: Path, parts: Sequence[str]) -> None:
        self._descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parts:
                below = os.open(part, _DIRECTORY, dir_fd=self._descriptor)
                os.close(self._descriptor)
                self._descriptor = below
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _look(layer: Path, parts: Sequence[str]) -> tuple[os.stat_result | None, bool]:
    """The status of a path in one layer, or whether the layer hides it in those below."""
    hides = False
    descriptor = os.open(layer, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        for index, part in enumerate(parts):
            hides = hides or is_opaque(descriptor)
            try:
                status = os.stat(part, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                return None, hides
            except OSError:  # too long a name
                return None, True
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                return None, True
            if index == len(parts) - 1:
                break
            if not stat.S_ISDIR(status.st_mode):
                return None, True
            below = os.open(part, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        return status, hides
    finally:
        os.close(descriptor)
