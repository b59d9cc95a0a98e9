"""Giving up rights: another user, no capabilities, no way to get any back, and a view of the disk with what is needed."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cupola.domain.errors import CupolaError
from cupola.sandbox.oci import linux

ACCOUNT = "cupola"
NUMBER = 61180
"""The user where there is no such account: outside of the ranges that distributions and systemd give out."""


@dataclass(frozen=True)
class ServerUser:
    """Whom the server runs as."""

    uid: int
    gid: int


def find_server_user(setting: str) -> ServerUser | None:
    """The user that a setting names, None for no change. Raises CupolaError when there is no such user."""
    if os.geteuid() != 0 or setting in ("root", "0"):
        return None
    if setting.isdecimal():
        return ServerUser(int(setting), int(setting))
    try:
        found = pwd.getpwnam(setting or ACCOUNT)
    except KeyError:
        if setting:
            raise CupolaError("bad_setting", f"server_user: there is no user {setting!r} on this machine.") from None
        return ServerUser(NUMBER, NUMBER)
    return ServerUser(found.pw_uid, found.pw_gid)


def give(directory: Path, uid: int, gid: int) -> None:
    """Make a directory with all that is in it someone's, unless it is already. Links are not followed."""
    if directory.lstat().st_uid == uid:
        return
    for _, names, files, descriptor in os.fwalk(directory):
        for name in (*names, *files):
            os.chown(name, uid, gid, dir_fd=descriptor, follow_symlinks=False)
    # Last: an interrupted change is begun anew.
    os.chown(directory, uid, gid, follow_symlinks=False)


def become(user: ServerUser, writable: Path, readable: Sequence[Path]) -> None:
    """Become a user for good. `writable` and `readable` can be reached, whatever is above them.

    The calling process must have no threads. Raises CupolaError when root has too few rights here, as in some containers.
    """
    try:
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
        reveal(writable, readable)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
        linux.forbid_new_privileges()
    except OSError as error:
        raise CupolaError(
            "no_privilege",
            f"The server cannot give up its rights here ({error}). Set CUPOLA_SERVER_USER=root to run it as root, in the "
            "process that makes sandboxes.",
        ) from error


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies. Call it after a change of user, which undoes it."""
    linux.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _program_directories() -> list[Path]:
    """Where this program is loaded from, which may be in somebody's home directory."""
    named = (sys.prefix, sys.base_prefix, sysconfig.get_path("stdlib"), *sys.path)
    return [path for path in map(Path, named) if path.is_absolute() and path.exists()]


def reveal(writable: Path, readable: Sequence[Path]) -> None:
    """Where a directory on the way lets nobody pass, show an empty one that has only what is to be reached: these paths, and
    where this program is loaded from. For a process that has mounts of its own."""
    hidden: dict[Path, list[Path]] = {}
    for path in sorted({writable, *readable, *_program_directories()}):
        closed = _closed_ancestor(path)
        if closed is not None and not any(path.is_relative_to(other) for other in hidden.get(closed, ())):
            hidden.setdefault(closed, []).append(path)
    opened = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for paths in hidden.values() for path in paths}
    for closed, paths in hidden.items():
        linux.mount("none", str(closed), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m,mode=755")
        for path in paths:
            if stat.S_ISDIR(os.fstat(opened[path]).st_mode):
                path.mkdir(parents=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            linux.mount(f"/proc/self/fd/{opened[path]}", str(path), "", linux.MS_BIND | linux.MS_REC)
            os.close(opened[path])


def _closed_ancestor(path: Path) -> Path | None:
    """The uppermost directory above `path` that its owner alone can pass."""
    return next((parent for parent in reversed(path.parents) if not parent.stat().st_mode & 0o001), None)
