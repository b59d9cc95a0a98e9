"""The files of one session: what is below its home directory, whether its sandbox runs or not.

The sandbox owns these files and may change them at any moment. Everything here blocks, though never for another process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from cupola.domain.errors import CupolaError
from cupola.sessions.file_listing import DirectoryNames, NamePage
from cupola.sessions.file_names import shown_name
from cupola.sessions.file_removal import remove_empty, remove_tree
from cupola.sessions.file_transfer import Download, Upload
from cupola.sessions.file_tree import Names, conflict, explained, make_directory, open_directory

LATEST_TIME = 253_402_300_799
"""The last second of the year 9999. Clients cannot read later times, and any file may claim one."""


@dataclass(frozen=True)
class FileEntry:
    """A file, a directory or anything else. `size` is in bytes, 0 for what is no regular file; times are epoch seconds;
    `mode` is that of stat(2)."""

    name: str
    size: int
    is_directory: bool
    modified_time: int
    mode: int


class SessionFiles:
    """Operations below `home`. What cannot be done is a CupolaError (400, 404, 409, 413, 507)."""

    def __init__(self, home: Path, names: DirectoryNames) -> None:
        self._home = home
        self._names = names

    def create(self) -> None:
        """Make the home directory of a session that never had a sandbox. The first one gives it to its user."""
        with explained(()):
            self._home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._home.mkdir(exist_ok=True, mode=0o700)

    def stat(self, path: Names) -> FileEntry:
        """What a path names. A link is described, not what it leads to."""
        with explained(path), open_directory(self._home, path[:-1]) as parent:
            return _entry(path[-1] if path else b".", parent)

    def list_directory(self, path: Names, page: NamePage) -> tuple[tuple[FileEntry, ...], str | None]:
        """The immediate children on one page, and the name to go on after when there are more."""
        with explained(path), open_directory(self._home, path) as directory:
            names, more = self._names.names(directory, page)
            entries = []
            for name in names:
                # What was removed since the directory was read is left out.
                with contextlib.suppress(FileNotFoundError):
                    entries.append(_entry(name, directory))
        return tuple(entries), shown_name(names[-1]) if more else None

    def make_directory(self, path: Names) -> bool:
        """Make a directory and its parents; False when it was there."""
        if not path:
            return False
        with explained(path), open_directory(self._home, path[:-1], create=True) as parent:
            if make_directory(path[-1], parent, self._home.stat()):
                return True
            if not _entry(path[-1], parent).is_directory:
                raise conflict(path, "exists and is no directory")
        return False

    def remove(self, path: Names, recursive: bool, seconds: float) -> bool:
        """Remove a file, a link or a directory. After `seconds` it stops with False: call it again for the rest."""
        if not path:
            raise CupolaError("bad_request", "path: the home directory itself cannot be removed.", param="path")
        until = time.monotonic() + seconds
        name = path[-1]
        with explained(path), open_directory(self._home, path[:-1]) as parent:
            try:
                os.unlink(name, dir_fd=parent)
            except IsADirectoryError:
                if recursive:
                    return _is_removed(name, parent, until)
                try:
                    remove_empty(name, parent)
                except OSError as error:
                    if error.errno != errno.ENOTEMPTY:
                        raise
                    text = "is a directory that is not empty; `recursive=true` removes it with its contents"
                    raise conflict(path, text) from None
        return True

    def upload(self, path: Names) -> Upload:
        """A file to be written; nothing happens before it is opened."""
        return Upload(self._home, path)

    def download(self, path: Names) -> Download:
        """A file to be read; nothing happens before it is opened."""
        return Download(self._home, path)


def _is_removed(name: bytes, parent: int, until: float) -> bool:
    try:
        return remove_tree(name, parent, until)
    except NotADirectoryError:
        # Replaced since the first look; the next one finds what it is now.
        return False


def _entry(name: bytes, parent: int) -> FileEntry:
    status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    return FileEntry(
        name=shown_name(name),
        size=status.st_size if stat.S_ISREG(status.st_mode) else 0,
        is_directory=stat.S_ISDIR(status.st_mode),
        modified_time=min(max(0, int(status.st_mtime)), LATEST_TIME),
        mode=status.st_mode,
    )
