"""The control groups that an ordinary user may use: those that the process is in, where they belong to the user.

With version 2 this is what systemd's `Delegate=yes` makes; with version 1, whoever administers the host gives a user the
directory and the files of a group in each hierarchy, and starts the process in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from cupola.sandbox.oci import linux
from cupola.sandbox.oci.cgroup import Hierarchies
from cupola.sandbox.oci.runtime_config import LIMITS

PAUSE = 0.01
CGROUPS = Path("/sys/fs/cgroup")
RESERVED = "cupola-server"
"""The group inside of a delegated one that the platform itself is in: version 2 lets none be in a group that limits others."""


@dataclass(frozen=True)
class Delegation:
    """What is delegated. `groups` maps a version 1 hierarchy, by its controllers (`cpu,cpuacct`), to the user's group in it;
    `unified` is the user's group of version 2, which is of use where no version 1 hierarchy is delegated."""

    groups: dict[str, Path]
    unified: Path | None
    controllers: frozenset[str]
    """The controllers of LIMITS, and `freezer`."""


def find_delegation(hierarchies: Hierarchies, own: str | None = None) -> Delegation:
    """What is delegated to the user of this process. `own` is the text of `/proc/self/cgroup`."""
    text = Path("/proc/self/cgroup").read_text() if own is None else own
    groups: dict[str, Path] = {}
    unified: Path | None = None
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        if names.startswith("name="):
            continue  # it has no controllers
        version_1 = hierarchies.controllers.get(names.split(",")[0])
        mount_point = version_1 if names else hierarchies.unified or hierarchies.hybrid
        if mount_point is None or not _is_ours(group := mount_point / path.lstrip("/")):
            continue
        if names:
            groups[names] = group
        else:
            unified = group
    if groups:
        held = frozenset(name for names in groups for name in names.split(","))
        return Delegation(groups, None, held & (LIMITS | {"freezer"}))
    if unified is None:
        return Delegation({}, None, frozenset())
    offered = (unified / "cgroup.controllers").read_text().split()
    # Version 2 freezes without a controller of that name.
    return Delegation({}, unified, frozenset(offered) & LIMITS | {"freezer"})


def _is_ours(group: Path) -> bool:
    return all(os.access(path, os.W_OK) for path in (group, group / "cgroup.procs"))


def show_delegated(delegation: Delegation) -> None:
    """Let this process see the delegated groups alone, where control groups usually are, each as the root of its hierarchy.

    For a process that has mounts and a user namespace of its own. Everything that works with control groups then works
    as it does for root. Raises OSError.
    """
    linux.unshare(linux.CLONE_NEWCGROUP)
    linux.mount("none", str(CGROUPS), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=1m")
    if delegation.unified is not None:
        # The kernel refuses it right above the host's own mount, which is now further down.
        linux.mount("cgroup2", str(CGROUPS), "cgroup2", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC)
        _share_out()
        return
    for names in delegation.groups:
        hierarchy = CGROUPS / names
        hierarchy.mkdir()
        linux.mount("cgroup", str(hierarchy), "cgroup", linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC, names)
        for name in names.split(","):
            if name != names:
                (CGROUPS / name).symlink_to(names)


def _share_out() -> None:
    """Let groups below the delegated one have limits; where something hinders it, they have those that they can have."""
    reserved = CGROUPS / RESERVED
    reserved.mkdir(exist_ok=True)
    _move_all(CGROUPS, reserved)
    for name in LIMITS & frozenset((CGROUPS / "cgroup.controllers").read_text().split()):
        with contextlib.suppress(OSError):
            (CGROUPS / "cgroup.subtree_control").write_text(f"+{name}")


def give_back(patience: float) -> None:
    """Undo what `show_delegated` has changed of the groups, as far as that is possible: `patience` is the time in seconds that
    processes which were killed may take to leave them."""
    reserved = CGROUPS / RESERVED
    end = time.monotonic() + patience
    while reserved.exists():
        try:
            for name in (CGROUPS / "cgroup.subtree_control").read_text().split():
                (CGROUPS / "cgroup.subtree_control").write_text(f"-{name}")
            _move_all(reserved, CGROUPS)
            reserved.rmdir()
        except OSError:
            if time.monotonic() >= end:
                return
            time.sleep(PAUSE)


def enforceable(hierarchies: Hierarchies) -> frozenset[str]:
    """Which of LIMITS sandboxes can be held to in these hierarchies."""
    if hierarchies.unified is None:
        return LIMITS & frozenset(hierarchies.controllers)
    return LIMITS & frozenset((hierarchies.unified / "cgroup.subtree_control").read_text().split())


def _move_all(source: Path, target: Path) -> None:
    for process in (source / "cgroup.procs").read_text().split():
        # It may have ended, or belong to somebody else. 0 is one of another process id namespace, and means the writer.
        with contextlib.suppress(OSError):
            (target / "cgroup.procs").write_text(process)
