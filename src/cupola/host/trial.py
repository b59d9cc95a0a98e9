"""Tries whether an ordinary user can have what sandboxes need in a user namespace: settings alone do not tell."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cupola.sandbox.oci import linux

_NAMESPACES = linux.CLONE_NEWUSER | linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWNET | linux.CLONE_NEWCGROUP
_PLACE = Path("/tmp")  # noqa: S108 - hidden by a file system of the trial's own
_LONGEST = 1000


def try_user_namespace() -> str:
    """What goes wrong in a user namespace, in words; empty when everything works. Blocks for some milliseconds.

    The calling process must have no threads.
    """
    said, saying = os.pipe()
    trying = os.fork()
    if trying == 0:
        os.write(saying, _try().encode()[:_LONGEST])
        os._exit(0)
    os.close(saying)
    with os.fdopen(said, "rb") as report:
        found = report.read().decode(errors="replace")
    os.waitpid(trying, 0)
    return found


def _try() -> str:
    uid, gid = os.geteuid(), os.getegid()
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("it cannot be made", lambda: linux.unshare(_NAMESPACES)),
        ("nothing can be mounted in it", lambda: _mount_place(uid, gid)),
        ("overlayfs cannot be mounted in it", _mount_overlay),
        ("/proc cannot be mounted in it", _mount_proc),
    )
    for problem, step in steps:
        try:
            step()
        except OSError as error:
            return f"{problem} ({error.strerror})"
    return ""


def _mount_place(uid: int, gid: int) -> None:
    """`uid` and `gid` are those outside: unmapped, this process could create nothing."""
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    linux.mount("none", str(_PLACE), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=1m")


def _mount_overlay() -> None:
    for name in ("lower", "upper", "work", "root", "proc"):
        (_PLACE / name).mkdir()
    options = ",".join(f"{name}dir={_PLACE / name}" for name in ("lower", "upper", "work"))
    linux.mount("overlay", str(_PLACE / "root"), "overlay", linux.MS_NOSUID | linux.MS_NODEV, f"{options},userxattr")


def _mount_proc() -> None:
    # The first process of the new process id namespace, which a mount of /proc shows.
    first = os.fork()
    if first == 0:
        try:
            linux.mount("proc", str(_PLACE / "proc"), "proc", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    number = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    if number != 0:
        raise OSError(number, os.strerror(number))
