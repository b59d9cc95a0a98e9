"""Opening what is below a directory whose owner may change it at any moment.

Every name is looked up in a directory that is open already. No symbolic link is followed, and nothing but directories and
regular files is opened.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from cupola.domain.errors import CupolaError, not_found
from cupola.sessions.file_names import shown_path

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How a directory is opened."""

Names = tuple[bytes, ...]
"""A path, as `parse_path` gives it."""


@contextlib.contextmanager
def open_inner(name: bytes, parent: int) -> Iterator[int]:
    """A directory inside an open one, for the length of the block. Raises OSError."""
    directory = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        yield directory
    finally:
        os.close(directory)


@contextlib.contextmanager
def open_directory(home: Path, path: Names, create: bool = False) -> Iterator[int]:
    """A directory below home, for the length of the block, made with its parents when `create` says so.

    Raises CupolaError (400) when something on the way is no directory, and OSError.
    """
    directory = descend(home, path, create)
    try:
        yield directory
    finally:
        os.close(directory)


def descend(home: Path, path: Names, create: bool = False) -> int:
    """As `open_directory`, for a descriptor that the caller closes."""
    directory = os.open(home, DIRECTORY)
    try:
        owner = os.fstat(directory)
        for depth, name in enumerate(path, start=1):
            if create:
                make_directory(name, directory, owner)
            try:
                inner = os.open(name, DIRECTORY, dir_fd=directory)
            except NotADirectoryError:
                mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
                raise _refused(path[:depth], mode, "not a directory") from None
            os.close(directory)
            directory = inner
    except BaseException:
        os.close(directory)
        raise
    return directory


def make_directory(name: bytes, parent: int, owner: os.stat_result) -> bool:
    """Make a directory that belongs to the owner of another; False when something of that name is there."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        return False
    with open_inner(name, parent) as directory:
        os.fchown(directory, owner.st_uid, owner.st_gid)
        os.fchmod(directory, 0o755)
    return True


def open_regular(home: Path, path: Names) -> int:
    """A descriptor of a regular file, for reading. Raises CupolaError (400) when it is something else, and OSError."""
    with open_directory(home, path[:-1]) as parent:
        # A descriptor that names the file without opening it comes first: opening a pipe can take for ever, and opening a
        # device can do things. What was looked at is then what is opened, whatever has its name by now.
        name = path[-1] if path else b"."
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        mode = os.fstat(found).st_mode
        if not stat.S_ISREG(mode):
            raise _refused(path, mode, "not a regular file")
        # Without O_NONBLOCK, a process that holds a lease on the file could make this wait.
        return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found)


def entry_names(directory: int) -> Iterator[bytes]:
    """The names in an open directory, in no order."""
    with os.scandir(directory) as entries:
        for entry in entries:
            yield os.fsencode(entry.name)


@contextlib.contextmanager
def explained(path: Names) -> Iterator[None]:
    """Turn what the system refuses into what a caller can understand."""
    try:
        yield
    except FileNotFoundError:
        raise not_found(f"The path {shown_path(path)!r} among the session's files") from None
    except BlockingIOError:
        raise conflict(path, "is locked by the agent; try again") from None
    except NotADirectoryError:
        raise conflict(path, "was replaced while it was being looked at; try again") from None
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = "The disk that holds the server's data is full; nothing was changed. Free some space."
        raise CupolaError("disk_full", text, status=507) from error


def conflict(path: Names, what: str) -> CupolaError:
    """What is there does not allow what was asked for."""
    return CupolaError("conflict", f"path: {shown_path(path)!r} {what}.", status=409, param="path")


def _refused(path: Names, mode: int, wanted: str) -> CupolaError:
    what = "a symbolic link, which is not followed" if stat.S_ISLNK(mode) else wanted
    return CupolaError("bad_request", f"path: {shown_path(path)!r} is {what}.", param="path")
