"""The mounts of a sandbox: its root, its directories, and those that it gets while it runs already."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from cupola.sandbox.oci import linux
from cupola.sandbox.oci.runtime_config import User


def make_directories(user: User, *directories: Path) -> None:
    """Have the directories, with all that is in them the user's own: files may be older than the user, who comes with the
    image of a version. Links are not followed."""
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if directory.stat().st_uid == user.uid:
            continue
        os.chown(directory, user.uid, user.gid)
        for _, inner, files, descriptor in os.fwalk(directory):
            for name in (*inner, *files):
                with contextlib.suppress(FileNotFoundError):
                    os.chown(name, user.uid, user.gid, dir_fd=descriptor, follow_symlinks=False)


def attach_directories(namespace: int, user: User, directories: dict[str, Path]) -> None:
    """Mount host directories at paths of another mount namespace. For a thread that does nothing else.

    The paths are looked up inside the namespace: whatever its processes made of them, they lead nowhere outside.
    """
    make_directories(user, *directories.values())
    own = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    mounts: dict[str, int] = {}
    try:
        for target, directory in directories.items():
            mounts[target] = linux.clone_directory_mount(str(directory))
        linux.setns(namespace, linux.CLONE_NEWNS)
        try:
            for target, descriptor in mounts.items():
                linux.attach_mount(descriptor, target)
        finally:
            linux.setns(own, linux.CLONE_NEWNS)
    finally:
        for descriptor in (own, *mounts.values()):
            os.close(descriptor)


def mount_overlay(layers: tuple[Path, ...], upper: Path, work: Path, target: Path) -> None:
    # Layers are named by descriptors: a mount takes at most a page of options, and paths may hold `:` or `,`.
    descriptors = [os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (*reversed(layers), upper, work)]
    try:
        *lower, upper_path, work_path = (f"/proc/self/fd/{descriptor}" for descriptor in descriptors)
        options = f"lowerdir={':'.join(lower)},upperdir={upper_path},workdir={work_path}"
        if linux.in_user_namespace():
            options += ",userxattr"
        linux.mount("overlay", str(target), "overlay", linux.MS_NODEV | linux.MS_NOSUID, options)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def bring_within_reach(place: Path, name: str, *directories: Path) -> list[Path]:
    """Other paths of directories, below `place`, where a sandbox's root may pass that is not this process's user."""
    mounts = [place / f"{name}.{number}" for number in range(len(directories))]
    for directory, mount in zip(directories, mounts, strict=True):
        mount.mkdir()
        # With its flags: crun forgets them when it has a user namespace to make.
        descriptor = linux.clone_directory_mount(str(directory))
        try:
            linux.attach_mount(descriptor, str(mount))
        finally:
            os.close(descriptor)
    return mounts


def put_out_of_reach(place: Path, name: str) -> None:
    """Undo `bring_within_reach`."""
    for mount in place.glob(f"{name}.*"):
        with contextlib.suppress(OSError):
            linux.unmount(str(mount))
        # Never what is in it.
        mount.rmdir()
