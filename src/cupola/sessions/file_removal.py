"""Removing a directory that its owner may change at any moment: no link is followed, and no depth or number is too large.

A directory inside the one to be removed is emptied by moving its own directories up, beside it. So at most three are open at
a time, and each is moved once, however deep the tree is.
"""

from __future__ import annotations

import errno
import itertools
import os
import time

from cupola.domain.ids import random_text
from cupola.sessions.file_names import UPLOAD_PREFIX
from cupola.sessions.file_tree import entry_names, open_inner

LEFTOVER_LIMIT = 1000
"""What broken uploads have left in one directory is removed with it up to this number."""

_CHANGED_MEANWHILE = (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.EINVAL)
"""What a directory gives that was filled, moved or replaced while it was removed. The next pass finds it as it is then."""


def remove_tree(name: bytes, parent: int, until: float) -> bool:
    """Remove a directory and what is in it; False when the clock (`time.monotonic`) is at `until` and more is left.

    Raises OSError, also when the directory is gone or has become something else.
    """
    while time.monotonic() <= until:
        with open_inner(name, parent) as top:
            for entry in entry_names(top):
                if time.monotonic() > until:
                    return False
                _remove(entry, top, until)
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            # Something was moved up, or made, after its place in the directory was read.
            if error.errno != errno.ENOTEMPTY:
                raise
        else:
            return True
    return False


def remove_empty(name: bytes, parent: int) -> None:
    """Remove a directory that has nothing in it, except for what broken uploads have left. Raises OSError."""
    with open_inner(name, parent) as directory:
        leftovers = list(itertools.islice(entry_names(directory), LEFTOVER_LIMIT))
        if all(entry.startswith(UPLOAD_PREFIX) for entry in leftovers):
            for entry in leftovers:
                _unlinked(entry, directory)
    os.rmdir(name, dir_fd=parent)


def _remove(name: bytes, top: int, until: float) -> None:
    """Remove an entry of the top directory, or at least some of what is in it."""
    if _unlinked(name, top):
        return
    try:
        with open_inner(name, top) as directory:
            for entry in entry_names(directory):
                if time.monotonic() > until:
                    return
                if not _unlinked(entry, directory):
                    os.rename(
                        entry, b".cupola-removed-" + random_text(24).encode(), src_dir_fd=directory, dst_dir_fd=top
                    )
        os.rmdir(name, dir_fd=top)
    except OSError as error:
        if error.errno not in _CHANGED_MEANWHILE:
            raise


def _unlinked(name: bytes, parent: int) -> bool:
    """Remove a name, unless it is that of a directory."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    return True
