"""What the servers of a machine have to do with one another: mounts that do not meet, and the end of what a dead one left."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

from cupola.sandbox.oci import linux, process
from cupola.sandbox.oci.cgroup import ControlGroups, find_hierarchies, needs_hybrid_hidden
from cupola.sandbox.oci.network import forwarding

LOCK_NAME = "lock"
STATE = "state"
HIDING_SIZE = "size=64m"
"""Of what hides a mount of control groups: a runtime writes a page there for each sandbox. Memory is taken as it is used."""


def enter_private_mount_namespace() -> None:
    """Give this process mounts of its own. Call it before the process has threads.

    Mounts that the platform makes are then invisible outside and vanish with it. On a host with both versions of
    control groups, the version 2 mount is hidden from crun, which refuses to work when it holds controllers.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    hierarchies = find_hierarchies()
    if hierarchies.hybrid is not None and needs_hybrid_hidden(hierarchies):
        linux.mount("none", str(hierarchies.hybrid), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, HIDING_SIZE)


def sweep_dead_installations(run_root: Path) -> None:
    """Remove the sandboxes of installations whose server is dead: nobody holds the lock in their run directory.

    Blocks. `run_root` holds one run directory for each installation of this machine.
    """
    if not run_root.exists():
        return
    hierarchies = find_hierarchies()
    for entry in sorted(run_root.iterdir()):
        lock = entry / LOCK_NAME
        if not lock.exists():
            continue
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # Runtimes in the middle of work end first: what they are about to make would come after the removal.
            process.kill_by_argument(str(entry / STATE))
            groups = ControlGroups(f"cupola-{entry.name}", hierarchies)
            for name in groups.names():
                groups.remove(name)
            groups.remove_parent()
            forwarding.switch_off(entry)
            shutil.rmtree(entry)
