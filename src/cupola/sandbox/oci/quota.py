"""Project quotas: limits that the file system itself holds, for everything below some directories together.

ext4 has them with the features `quota` and `project` and the mount option `prjquota`, xfs with the mount option
`pquota`. See `quotactl(2)`, `ioctl_xfs_fsgetxattr(2)` and the kernel's `include/uapi/linux/quota.h` and `dqblk_xfs.h`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

from cupola.sandbox.oci import linux

FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200
_ATTRIBUTES = struct.Struct("IIIII8x")
"""`struct fsxattr`: flags, extent size, extents, project, extent size of copies."""

PRJQUOTA = 2
Q_GETQUOTA = 0x800007
Q_SETQUOTA = 0x800008
Q_XGETQSTAT = 0x5805
QIF_LIMITS = 5
FS_QUOTA_PDQ_ENFD = 1 << 5
_QUOTA = struct.Struct("QQQQQQQQI4x")
"""`struct if_dqblk`: hard and soft limit of KiB, bytes in use, the same three of inodes, two times, what is valid."""
_STATE = struct.Struct("bHb")
"""The beginning of `struct fs_quota_stat`: version, flags."""
_STATE_SIZE = 256

FIRST_PROJECT = 1 << 31
"""Projects below are left to others: administrators and container engines count from small numbers."""
DEEPEST = 200


class ProjectQuotas:
    """The project quotas of the file system that a directory is on. Every method may raise OSError."""

    def __init__(self, directory: Path) -> None:
        self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._device = os.fstat(self._directory).st_dev

    def close(self) -> None:
        os.close(self._directory)

    def enforced(self) -> bool:
        """Whether this file system holds processes to the limits of projects."""
        state = ctypes.create_string_buffer(_STATE_SIZE)
        state.raw = b"\1" + bytes(_STATE_SIZE - 1)
        try:
            self._call(Q_XGETQSTAT, 0, state)
        except OSError:
            return False
        return bool(_STATE.unpack_from(state)[1] & FS_QUOTA_PDQ_ENFD)

    def limit(self, directories: Iterable[Path], size: int, inodes: int) -> int | None:
        """Make one project of the directories, with limits in bytes and of inodes, 0 for none; returns its number.

        None when a directory is on another file system, or holds what cannot be counted.
        """
        descriptors = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) for path in directories]
        try:
            if any(os.fstat(descriptor).st_dev != self._device for descriptor in descriptors):
                return None
            before = _project(descriptors[0])
            project = before if before >= FIRST_PROJECT else self._unused_project()
            values = (-(-size // 1024), 0, 0, inodes, 0, 0, 0, 0, QIF_LIMITS)
            self._call(Q_SETQUOTA, project, ctypes.create_string_buffer(_QUOTA.pack(*values), _QUOTA.size))
            if all(_assign(descriptor, project, DEEPEST) for descriptor in descriptors):
                return project
            return None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def usage(self, project: int) -> tuple[int, int]:
        """Bytes and inodes of a project."""
        values = self._read(project)
        return values[2], values[5]

    def forget(self, project: int) -> None:
        """Take the limits off a project that has no files any more."""
        empty = ctypes.create_string_buffer(_QUOTA.pack(*(0,) * 8, QIF_LIMITS), _QUOTA.size)
        self._call(Q_SETQUOTA, project, empty)

    def _unused_project(self) -> int:
        while True:
            project = FIRST_PROJECT + secrets.randbelow(FIRST_PROJECT - 1)
            try:
                if not any(self._read(project)[:6]):
                    return project
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return project

    def _read(self, project: int) -> tuple[int, ...]:
        found = ctypes.create_string_buffer(_QUOTA.size)
        self._call(Q_GETQUOTA, project, found)
        return _QUOTA.unpack(found)

    def _call(self, command: int, project: int, argument: ctypes.Array[ctypes.c_char]) -> None:
        linux.quotactl(self._directory, command << 8 | PRJQUOTA, project, argument)


def _project(descriptor: int) -> int:
    attributes = bytearray(_ATTRIBUTES.size)
    fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, attributes)
    project: int = _ATTRIBUTES.unpack(attributes)[3]
    return project


def _assign(descriptor: int, project: int, depth: int) -> bool:
    """Count a file, and all below it if it is a directory, to a project; False when something below is too deep."""
    attributes = bytearray(_ATTRIBUTES.size)
    fcntl.ioctl(descriptor, FS_IOC_FSGETXATTR, attributes)
    flags, extent, extents, before, copies = _ATTRIBUTES.unpack(attributes)
    if before == project:
        return True
    if depth == 0:
        return False
    complete = True
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        flags |= FS_XFLAG_PROJINHERIT
        with os.scandir(descriptor) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False):
                    inner = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
                    try:
                        complete = _assign(inner, project, depth - 1) and complete
                    finally:
                        os.close(inner)
    if complete:
        # A directory comes after all that is in it, so one that is assigned is assigned whole.
        fcntl.ioctl(descriptor, FS_IOC_FSSETXATTR, _ATTRIBUTES.pack(flags, extent, extents, project, copies))
    return complete
