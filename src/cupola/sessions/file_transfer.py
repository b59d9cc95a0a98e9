"""One file on its way into a session's home directory or out of it, in pieces."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from cupola.domain.errors import CupolaError
from cupola.sessions.file_names import new_upload_name
from cupola.sessions.file_tree import Names, conflict, descend, explained, open_regular

UPLOAD_LIMIT = 50 * 1024 * 1024
"""Bytes of the largest file that can be uploaded."""


class Upload:
    """A file that appears, whole, when it is finished. Close it whatever happened."""

    def __init__(self, home: Path, path: Names) -> None:
        self.size = 0
        self._home = home
        self._path = path
        self._parent = -1
        self._file = -1
        self._temporary: bytes | None = None

    def open(self) -> None:
        """Make the directories on the way, and a temporary file beside the target."""
        with explained(self._path):
            if not self._path:
                raise conflict(self._path, "is a directory")
            self._parent = descend(self._home, self._path[:-1], create=True)
            self._refuse_directory()
            name = new_upload_name()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(name, flags, 0o600, dir_fd=self._parent)
            self._temporary = name

    def _refuse_directory(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(self._path[-1], dir_fd=self._parent, follow_symlinks=False).st_mode):
                raise conflict(self._path, "is a directory")

    def write(self, data: bytes) -> None:
        """Append a piece of the content."""
        self.size += len(data)
        if self.size > UPLOAD_LIMIT:
            raise too_large()
        with explained(self._path):
            write_all(self._file, data)

    def fileno(self) -> int:
        """The descriptor that `write` writes to."""
        return self._file

    def finish(self) -> None:
        """Put the file at its path, once its content is on disk. What was there is replaced; a link is not followed."""
        if self._temporary is None:
            raise RuntimeError("this upload is not open")
        with explained(self._path):
            owner = self._home.stat()
            os.fchown(self._file, owner.st_uid, owner.st_gid)
            os.fchmod(self._file, 0o644)
            os.fsync(self._file)
            try:
                os.rename(self._temporary, self._path[-1], src_dir_fd=self._parent, dst_dir_fd=self._parent)
            except IsADirectoryError:
                raise conflict(self._path, "is a directory") from None
            self._temporary = None

    def close(self) -> None:
        """Remove what was not finished."""
        try:
            if self._temporary is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._temporary, dir_fd=self._parent)
        finally:
            for descriptor in (self._file, self._parent):
                if descriptor >= 0:
                    os.close(descriptor)
            self._temporary, self._file, self._parent = None, -1, -1


class Download:
    """A regular file, open for reading. `size` is that at the time it was opened. Close it whatever happened."""

    def __init__(self, home: Path, path: Names) -> None:
        self.size = 0
        self._home = home
        self._path = path
        self._file = -1

    def open(self) -> None:
        """Open the file."""
        with explained(self._path):
            self._file = open_regular(self._home, self._path)
            self.size = os.fstat(self._file).st_size

    def fileno(self) -> int:
        """The descriptor that `read` reads from."""
        return self._file

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes; none when the file has become shorter."""
        return os.pread(self._file, size, offset)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def write_all(file: int, data: bytes) -> None:
    """Write every byte to an open file. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def too_large() -> CupolaError:
    """The refusal of an upload beyond the limit."""
    text = f"The file is larger than {UPLOAD_LIMIT // 1024**2} MiB, the most that one upload can have."
    return CupolaError("payload_too_large", text, status=413)
