"""Measures how much sandboxes keep on the disk. A program of its own: a long walk must not hold up the server.

It reads a list of `{"directories": […], "processes": […]}` as JSON and prints a list of `[bytes, inodes]`. Counting
ends where a limit is exceeded. Trees are hostile: links are not followed, and one that is too deep counts as too large.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path

DEEPEST = 200
"""Directories inside one another; each takes an open file while it is measured."""
MOST_DESCRIPTORS = 20_000
"""Open files looked at for each sandbox."""
BLOCK = 512


class Exceeded(Exception):
    """There is more than the limit."""


@dataclass
class Count:
    """What was found so far, and the limits."""

    most_bytes: int
    most_inodes: int
    bytes: int = 0
    inodes: int = 0
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def add(self, status: os.stat_result) -> None:
        """Count a file once, whatever number of names it has."""
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink != 1:
            key = (status.st_dev, status.st_ino)
            if key in self._seen:
                return
            self._seen.add(key)
        self.bytes += status.st_blocks * BLOCK
        self.inodes += 1
        if self.bytes > self.most_bytes or self.inodes > self.most_inodes:
            raise Exceeded


def measure(directories: list[str], processes: list[int], count: Count) -> tuple[int, int]:
    """Bytes and inodes of the trees, and of files that processes hold open after their removal.

    Beyond a limit the answer is just above it.
    """
    try:
        for directory in directories:
            try:
                descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue
            _walk(descriptor, count, DEEPEST)
        _add_removed(processes, count)
    except Exceeded:
        return max(count.bytes, 0), max(count.inodes, count.most_inodes + 1)
    return count.bytes, count.inodes


def _walk(descriptor: int, count: Count, depth: int) -> None:
    """Count a directory and all below it; closes its descriptor."""
    try:
        if depth == 0:
            raise Exceeded
        count.add(os.fstat(descriptor))
        with os.scandir(descriptor) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        _walk(_open_directory(entry.name, descriptor), count, depth - 1)
                    else:
                        count.add(entry.stat(follow_symlinks=False))
                except OSError as error:
                    # It was removed, or replaced by a link, since its name was read.
                    if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                        raise
    finally:
        os.close(descriptor)


def _open_directory(name: str, parent: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)


def _add_removed(processes: list[int], count: Count) -> None:
    """Count files that have no name any more and live as long as somebody has them open."""
    in_memory = _memory_device()
    left = MOST_DESCRIPTORS
    for process in processes:
        try:
            not_disk = {in_memory, *(Path(f"/proc/{process}/root/{path}").stat().st_dev for path in ("dev", "dev/shm"))}
            for entry in Path(f"/proc/{process}/fd").iterdir():
                if (left := left - 1) < 0:
                    return
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    removed = stat.S_ISREG(status.st_mode) and status.st_nlink == 0
                    if removed and status.st_dev not in not_disk:
                        count.add(status)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended


def _memory_device() -> int:
    """The device that files made by memfd_create(2) are on."""
    descriptor = os.memfd_create("probe")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def main() -> None:
    most_bytes, most_inodes = map(int, sys.argv[1:])
    os.nice(19)
    asked = json.load(sys.stdin)
    found = [measure(one["directories"], one["processes"], Count(most_bytes, most_inodes)) for one in asked]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
