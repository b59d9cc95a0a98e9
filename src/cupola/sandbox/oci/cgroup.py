"""Control groups of both versions: find them, count kills for lack of memory, freeze and kill what is inside, remove.

The OCI runtime creates a sandbox's group and writes its limits; this module only looks and cleans up. All groups
of one installation lie below `/{parent}`, in every hierarchy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cupola.sandbox.base import ThawFile


@dataclass(frozen=True)
class Hierarchies:
    """Where the control groups of this host are mounted.

    `unified` is set on a pure version 2 host; else `controllers` maps the name of each version 1 controller to its
    mount point. `hybrid` is the version 2 mount beside version 1 ones, if there is one. `hidden` is where such a
    mount is hidden under an ordinary file system: a runtime makes its directories there all the same.
    """

    unified: Path | None
    controllers: dict[str, Path]
    hybrid: Path | None
    hidden: Path | None = None

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every directory below which a sandbox may have a group."""
        if self.unified is not None:
            return (self.unified,)
        mounts = dict.fromkeys(self.controllers.values())
        return (*mounts, *([self.hybrid] if self.hybrid is not None else []))


def find_hierarchies(mountinfo: str | None = None) -> Hierarchies:
    """Read the mounts of this process (`/proc/self/mountinfo`, or the text given)."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    controllers: dict[str, Path] = {}
    version_2: list[Path] = []
    topmost: dict[Path, str] = {}
    lines = [line.partition(" - ") for line in text.splitlines()]
    mount_points = [Path(before.split()[4]) for before, _, _ in lines]
    for number, (_, _, after) in enumerate(lines):
        mount_point, kind = mount_points[number], after.split()[0]
        if any(mount_point != later and mount_point.is_relative_to(later) for later in mount_points[number + 1 :]):
            continue  # something was mounted over a directory above it
        topmost[mount_point] = kind
        if kind == "cgroup2":
            version_2.append(mount_point)
        elif kind == "cgroup":
            for option in after.split()[2].split(","):
                if option not in {"rw", "ro", "xattr", "clone_children"} and not option.startswith("release_agent"):
                    controllers[option] = mount_point
    found = version_2[0] if version_2 else None
    if not controllers:
        return Hierarchies(found, {}, None)
    if found is not None and topmost[found] != "cgroup2":
        return Hierarchies(None, controllers, None, hidden=found)
    return Hierarchies(None, controllers, found)


def needs_hybrid_hidden(hierarchies: Hierarchies) -> bool:
    """Whether the host's version 2 mount holds controllers beside version 1 ones: crun refuses to work then."""
    if hierarchies.hybrid is None:
        return False
    return bool(_read(hierarchies.hybrid / "cgroup.controllers").split())


class ControlGroups:
    """The groups of one installation's sandboxes."""

    def __init__(self, parent: str, hierarchies: Hierarchies) -> None:
        self.parent = parent
        self._roots = hierarchies.roots
        self._hidden = hierarchies.hidden
        self._memory = hierarchies.unified or hierarchies.controllers.get("memory")
        self._freezer = hierarchies.unified or hierarchies.controllers.get("freezer")
        self._unified = hierarchies.unified is not None
        self._freeze_words = ("cgroup.freeze", "1", "0") if self._unified else ("freezer.state", "FROZEN", "THAWED")

    @property
    def exist(self) -> bool:
        """Whether sandboxes have groups at all."""
        return bool(self._roots)

    @property
    def are_version_1(self) -> bool:
        return bool(self._roots) and not self._unified

    @property
    def can_freeze(self) -> bool:
        return self._freezer is not None

    def path(self, name: str) -> str:
        """The group of a sandbox as an OCI runtime wants it: `linux.cgroupsPath`."""
        return f"/{self.parent}/{name}"

    def names(self) -> frozenset[str]:
        """The sandboxes that have a group in any hierarchy."""
        found: set[str] = set()
        for root in self._roots:
            with contextlib.suppress(FileNotFoundError):
                found.update(entry.name for entry in os.scandir(root / self.parent) if entry.is_dir())
        return frozenset(found)

    def processes(self, name: str) -> list[int]:
        """The ids of the processes in the sandbox."""
        if self._freezer is None:
            return []
        return [int(pid) for pid in _read(self._freezer / self.parent / name / "cgroup.procs").split()]

    def enter(self, name: str, limits: Mapping[str, int]) -> None:
        """Version 1: make the groups of a sandbox and put the calling thread into them, and with it what it starts.

        `limits` maps files of the controllers to what to write; files of controllers that there are not are left out. Raises
        OSError.
        """
        for root in self._roots:
            group = root / self.parent / name
            group.mkdir(parents=True, exist_ok=True)
            for file, value in limits.items():
                if (group / file).exists():
                    (group / file).write_text(str(value))
            (group / "tasks").write_text("0")

    def leave(self) -> None:
        """Undo `enter`. Raises OSError."""
        for root in self._roots:
            (root / "tasks").write_text("0")

    def out_of_memory_kills(self, name: str) -> int:
        """How many processes of the sandbox the kernel has killed because the memory limit was reached."""
        if self._memory is None:
            return 0
        events = "memory.events" if self._unified else "memory.oom_control"
        for line in _read(self._memory / self.parent / name / events).splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
        return 0

    def freeze(self, name: str, deadline: float = 1.0) -> None:
        """Stop every process of the sandbox where it is; returns when they stand still, or after `deadline` seconds.

        A process in the middle of slow input or output stands still when that is done. Blocks: call it in a thread.
        """
        self._set_frozen(name, frozen=True)
        end = time.monotonic() + deadline
        while not self.is_frozen(name) and time.monotonic() < end:
            time.sleep(0.001)

    def thaw(self, name: str) -> None:
        """Let the processes of the sandbox go on. One write to a file of the kernel, which does not block."""
        self._set_frozen(name, frozen=False)

    def open_thaw_file(self, name: str) -> ThawFile | None:
        """The file that `thaw` writes to; it cannot be used for any other group. None where groups cannot be frozen."""
        if self._freezer is None:
            return None
        file, _, thawed = self._freeze_words
        return ThawFile(os.open(self._freezer / self.parent / name / file, os.O_WRONLY | os.O_CLOEXEC), thawed.encode())

    def _set_frozen(self, name: str, *, frozen: bool) -> None:
        if self._freezer is None:
            return
        file, freeze, thaw = self._freeze_words
        _write(self._freezer / self.parent / name / file, freeze if frozen else thaw)

    def is_frozen(self, name: str) -> bool:
        """Whether the processes of the sandbox stand still, or there are none."""
        if self._freezer is None:
            return True
        group = self._freezer / self.parent / name
        if not group.exists():
            return True
        if self._unified:
            return "frozen 1" in _read(group / "cgroup.events").splitlines()
        return _read(group / "freezer.state").strip() == "FROZEN"

    def remove(self, name: str, deadline: float = 10.0) -> None:
        """Kill every process of the sandbox and remove its groups; returns when they are gone.

        Raises TimeoutError after `deadline` seconds. Blocks: call it in a thread.
        """
        self._remove_groups([root / self.parent / name for root in self._roots], deadline)
        if self._hidden is not None:
            shutil.rmtree(self._hidden / self.parent / name, ignore_errors=True)

    def remove_parent(self) -> None:
        """Remove the installation's own, now empty, groups."""
        for root in self._roots:
            directory = root / self.parent
            while directory != root:
                try:
                    directory.rmdir()
                except OSError:
                    break
                directory = directory.parent
        if self._hidden is not None:
            shutil.rmtree(self._hidden / self.parent, ignore_errors=True)

    def _remove_groups(self, groups: list[Path], deadline: float) -> None:
        end = time.monotonic() + deadline
        pause = 0.001
        while True:
            left = [group for group in groups if group.exists()]
            for group in left:
                _kill_all(group)
            gone = [_remove_tree(group) for group in left]
            if all(gone):
                return
            if time.monotonic() > end:
                raise TimeoutError(f"the processes in {left[0]} do not die")
            # A killed process leaves its group only once the kernel has torn it down; nothing tells when.
            time.sleep(pause)
            pause = min(pause * 2, 0.05)


def _read(path: Path) -> str:
    """A file of a group; nothing when the group is gone, or goes while the file is read (ENODEV)."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        if error.errno == errno.ENODEV:
            return ""
        raise


def _write(path: Path, text: str) -> None:
    """To a file of a group; no error when the group is gone or goes meanwhile: the runtime removes it too."""
    try:
        path.write_text(text)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def _kill_all(group: Path) -> None:
    at_once = group / "cgroup.kill"
    if at_once.exists():
        _write(at_once, "1")
        return
    for directory, _, _ in os.walk(group):
        for pid in _read(Path(directory) / "cgroup.procs").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    thaw = group / "freezer.state"
    if thaw.exists():
        _write(thaw, "THAWED")


def _remove_tree(group: Path) -> bool:
    """Remove a group and those below it; whether it is gone."""
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            Path(directory).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
