"""Directory trees that a sandbox wrote, and may have made as deep, wide and strange as it could."""

from __future__ import annotations

import itertools
import os
import secrets
from pathlib import Path


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it; links are not followed. Nothing may write to it any more. Raises OSError.

    What is nested is moved up to the top before it is removed: neither paths nor recursion grow with the depth.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    top = os.open(path, flags)
    numbers, prefix = itertools.count(), secrets.token_hex(8)
    try:
        while nested := _remove_files(top):
            for name in nested:
                directory = os.open(name, flags, dir_fd=top)
                try:
                    for inner in _remove_files(directory):
                        os.rename(inner, f"{prefix}-{next(numbers)}", src_dir_fd=directory, dst_dir_fd=top)
                finally:
                    os.close(directory)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    path.rmdir()


def _remove_files(directory: int) -> list[str]:
    """Remove everything of a directory but directories, whose names it returns."""
    nested = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                nested.append(entry.name)
            else:
                os.unlink(entry.name, dir_fd=directory)
    return nested
