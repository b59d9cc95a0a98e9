"""The Linux calls that Python 3.11 has no function for: namespaces, mounts, subreaper."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
AT_FDCWD = -100
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
AT_EMPTY_PATH = 0x1000

_SYS_PIVOT_ROOT = {"x86_64": 155}.get(platform.machine(), 41)
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_SYS_QUOTACTL_FD = 443
"""The latter numbers are the same on every architecture."""

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces."""
    _check(_libc.unshare(flags), "unshare")


def in_user_namespace() -> bool:
    """Whether this process is in a user namespace of somebody's own, where root's rights are not those over the host."""
    return Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]


def mapped_ids() -> int:
    """How many users and groups from 0 on the user namespace of this process has without a gap."""
    return min(_mapped(Path(f"/proc/self/{kind}_map").read_text()) for kind in ("uid", "gid"))


def _mapped(table: str) -> int:
    end = 0
    for first, _, count in sorted(tuple(map(int, line.split())) for line in table.splitlines()):
        if first == end:
            end += count
    return end


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace that `descriptor` refers to."""
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """mount(2). Raises OSError."""
    _check(
        _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), options.encode()),
        f"mount {kind or source} on {target}",
    )


def unmount(target: str) -> None:
    """Detach a mount at once; it disappears when its last user does. Raises OSError."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def change_root(directory: str) -> None:
    """Make a mount the root of this mount namespace and of this process, and leave the old one. Raises OSError."""
    os.chdir(directory)
    _check(_libc.syscall(_SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    # The old root is now above the new one.
    unmount(".")
    os.chdir("/")


def become_subreaper() -> None:
    """Make processes whose parent dies below us our children, so that their exit status reaches us."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def forbid_new_privileges() -> None:
    """Let no program that this process starts have more rights than it."""
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def set_parent_death_signal(number: int) -> None:
    """Have a signal sent to this process when its parent dies."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]


def clone_directory_mount(path: str) -> int:
    """A descriptor of a detached bind mount of a directory, without setuid programs and devices. Raises OSError."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    descriptor: int = _libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)
    _check(min(descriptor, 0), f"open_tree {path}")
    attributes = _MountAttributes(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = _libc.syscall(_SYS_MOUNT_SETATTR, descriptor, b"", AT_EMPTY_PATH, ctypes.byref(attributes), size)
    if result != 0:
        os.close(descriptor)
    _check(result, f"mount_setattr {path}")
    return descriptor


def attach_mount(descriptor: int, target: str) -> None:
    """Put a detached mount at a path of the calling thread's mount namespace. Raises OSError."""
    flags = MOVE_MOUNT_F_EMPTY_PATH
    _check(
        _libc.syscall(_SYS_MOVE_MOUNT, descriptor, b"", AT_FDCWD, os.fsencode(target), flags), f"move_mount {target}"
    )


def quotactl(descriptor: int, command: int, identifier: int, argument: ctypes.Array[ctypes.c_char]) -> None:
    """quotactl_fd(2). Raises OSError."""
    identifier_argument = ctypes.c_uint32(identifier)
    _check(_libc.syscall(_SYS_QUOTACTL_FD, descriptor, command, identifier_argument, argument), "quotactl")
