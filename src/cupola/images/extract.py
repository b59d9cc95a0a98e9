"""Turn the entries of a layer into files below the current root directory, the way overlayfs wants them.

OCI image specification 1.1, "Image Layer Filesystem Changeset"; kernel documentation, "Overlay Filesystem",
"whiteouts and opaque directories". The caller has changed the root: no name leads out of it, whatever it
contains.
"""

# A few calls for each of thousands of files: pathlib would take longer than the kernel.
# ruff: noqa: PTH101, PTH102, PTH108, PTH112, PTH211

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import tarfile
from decimal import Decimal
from pathlib import Path
from typing import cast

from cupola.images.decompress import LayerError
from cupola.images.failures import NO_SPACE
from cupola.images.tarstream import TarStream, members

_WHITEOUT = ".wh."
_OPAQUE_WHITEOUT = ".wh..wh..opq"
_METADATA_WHITEOUT = ".wh..wh."
OPAQUE = "trusted.overlay.opaque"
UNPRIVILEGED_OPAQUE = "user.overlay.opaque"
"""What overlayfs heeds instead when it is mounted inside a user namespace, where nobody may set the other."""
_CAPABILITY = "security.capability"
_MAX_PATH_BYTES = 4095
_EXACT_TIME = re.compile(r"-?[0-9]{1,15}(\.[0-9]{1,30})?", re.ASCII)


def is_opaque(directory: Path | int) -> bool:
    """Whether a directory of a layer hides what lower layers have at its place."""
    attributes = os.listxattr(directory)
    return any(name in attributes and os.getxattr(directory, name) == b"y" for name in (OPAQUE, UNPRIVILEGED_OPAQUE))


class Extractor:
    """One layer, extracted into the root directory."""

    def __init__(self, stream: TarStream, max_entries: int, first_id: int = 0) -> None:
        self._stream = stream
        self._first_id = first_id
        self._max_entries = max_entries
        self._directories = {""}
        self._directory_times: dict[str, int] = {}

    def run(self) -> int:
        """Extract everything and return the number of entries. Raises LayerError and OSError (no space)."""
        entries = 0
        for entry in members(self._stream):
            entries += 1
            if entries > self._max_entries:
                raise LayerError(f"it has more than the {self._max_entries} entries allowed")
            try:
                self._extract(entry)
            except LayerError as error:
                raise LayerError(f"entry {shown(entry.name)}: {error}") from error
            except (OSError, ValueError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise
                reason = error.strerror if isinstance(error, OSError) else error
                raise LayerError(f"entry {shown(entry.name)} cannot be written ({reason})") from error
        self._restore_directory_times()
        return entries

    def _extract(self, entry: tarfile.TarInfo) -> None:
        path = relative(entry.name)
        parent, _, name = path.rpartition("/")
        if _WHITEOUT in path:
            if any(part.startswith(_WHITEOUT) for part in parent.split("/")):
                return
            if name.startswith(_WHITEOUT):
                self._ensure_directory(parent)
                self._apply_whiteout(parent, name)
                return
        if not path and not entry.isdir():
            raise LayerError("it has no name")
        if entry.isdir():
            self._make_directory(path, entry)
        elif entry.isreg():
            self._ensure_directory(parent)
            self._write_file(path, entry)
        elif entry.issym():
            self._ensure_directory(parent)
            self._remove(path)
            os.symlink(entry.linkname, path)
            os.lchown(path, *self._owner(entry))
            os.utime(path, ns=(modified(entry),) * 2, follow_symlinks=False)
        elif entry.islnk():
            self._ensure_directory(parent)
            self._link(path, relative(entry.linkname))

    def _owner(self, entry: tarfile.TarInfo) -> tuple[int, int]:
        return self._first_id + entry.uid, self._first_id + entry.gid

    def _make_directory(self, path: str, entry: tarfile.TarInfo) -> None:
        self._ensure_directory(path, replace=True)
        where = path or "."
        os.chown(where, *self._owner(entry))
        os.chmod(where, stat.S_IMODE(entry.mode))
        self._directory_times[where] = modified(entry)

    def _write_file(self, path: str, entry: tarfile.TarInfo) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            file = os.open(path, flags, 0o600)
        except FileExistsError:
            self._remove(path)
            file = os.open(path, flags, 0o600)
        try:
            if entry.sparse is None:
                for piece in self._stream.data(entry.size):
                    write_all(file, piece)
            else:
                self._write_sparse(file, entry)
            os.fchown(file, *self._owner(entry))
            os.fchmod(file, stat.S_IMODE(entry.mode))  # after the owner: changing that clears set-user-id
            self._set_capability(file, entry)
            os.utime(file, ns=(modified(entry),) * 2)
        finally:
            os.close(file)

    def _write_sparse(self, file: int, entry: tarfile.TarInfo) -> None:
        for offset, size in cast("list[tuple[int, int]]", entry.sparse):
            os.lseek(file, offset, os.SEEK_SET)
            for piece in self._stream.data(size):
                write_all(file, piece)
        os.ftruncate(file, entry.size)

    def _set_capability(self, file: int, entry: tarfile.TarInfo) -> None:
        value = entry.pax_headers.get(f"SCHILY.xattr.{_CAPABILITY}")
        if value is not None:
            # Best effort: nothing gains privileges in a sandbox, and some filesystems have no attributes.
            with contextlib.suppress(OSError):
                os.setxattr(file, _CAPABILITY, value.encode("utf-8", "surrogateescape"))

    def _link(self, path: str, target: str) -> None:
        if path == target:
            return
        self._remove(path)
        try:
            os.link(target, path, follow_symlinks=False)
        except FileNotFoundError as error:
            raise LayerError(f"it is a hard link to {shown(target)}, which is not in the layer") from error

    def _apply_whiteout(self, parent: str, name: str) -> None:
        """What a layer itself contains wins over its own whiteouts, in whatever order they come."""
        if name == _OPAQUE_WHITEOUT:
            self._make_opaque(parent)
            return
        if name.startswith(_METADATA_WHITEOUT):
            return
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise LayerError("it is a whiteout of nothing")
        path = f"{parent}/{hidden}" if parent else hidden
        status = status_of(path)
        if status is None:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        elif stat.S_ISDIR(status.st_mode):
            self._make_opaque(path)

    def _make_opaque(self, path: str) -> None:
        try:
            os.setxattr(path or ".", OPAQUE, b"y", follow_symlinks=False)
        except PermissionError:
            os.setxattr(path or ".", UNPRIVILEGED_OPAQUE, b"y", follow_symlinks=False)

    def _ensure_directory(self, path: str, *, replace: bool = False) -> None:
        """Make `path` a directory, with its parents. `replace` says that anything else there gives way."""
        if path in self._directories and not replace:
            return
        parts = path.split("/") if path else []
        for end in range(1, len(parts) + 1):
            ancestor = "/".join(parts[:end])
            if ancestor not in self._directories or (replace and end == len(parts)):
                self._ensure_one(ancestor, replace=replace and end == len(parts))
                self._directories.add(ancestor)

    def _ensure_one(self, path: str, *, replace: bool) -> None:
        try:
            os.mkdir(path, 0o755)
            return
        except FileExistsError:
            status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            return
        if is_whiteout(status):
            os.unlink(path)
            os.mkdir(path, 0o755)
            self._make_opaque(path)
        elif replace:
            self._remove(path)
            os.mkdir(path, 0o755)
        elif not os.path.isdir(path):
            raise LayerError(f"its parent {shown(path)} is not a directory")

    def _remove(self, path: str) -> None:
        status = status_of(path)
        if status is None:
            return
        if stat.S_ISDIR(status.st_mode):
            shutil.rmtree(path)
            self._directories = {""}
        else:
            os.unlink(path)
            if stat.S_ISLNK(status.st_mode):
                self._directories = {""}

    def _restore_directory_times(self) -> None:
        """At the end, because every file that is written changes the time of its directory."""
        for path, time in self._directory_times.items():
            # A later entry may have replaced the directory or one above it.
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.utime(path, ns=(time, time), follow_symlinks=False)


def relative(name: str) -> str:
    """`name` below the root: without `/`, `.` and empty parts; "" for the root itself.

    Raises LayerError for `..` and for names too long to be opened.
    """
    if "//" in name or "./" in name or name.startswith("/") or name.endswith(("/", ".")):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise LayerError("its path contains '..'")
        name = "/".join(parts)
    if len(os.fsencode(name)) > _MAX_PATH_BYTES:
        raise LayerError(f"its path is longer than {_MAX_PATH_BYTES} bytes")
    return name


def modified(entry: tarfile.TarInfo) -> int:
    """The modification time in nanoseconds. Exact, where tarfile's floating point number rounds."""
    text = entry.pax_headers.get("mtime", "")
    if _EXACT_TIME.fullmatch(text):
        return int(Decimal(text).scaleb(9))
    return int(entry.mtime * 1_000_000_000)


def status_of(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def write_all(file: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(file, piece) :]


def shown(name: str) -> str:
    """A name from an archive as it may be put into a message."""
    return ascii(name if len(name) <= 200 else name[:200] + "...")
