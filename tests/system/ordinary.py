"""An ordinary user of a host, for tests of what works without root: made for one process at a time, see `as_user`."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cupola.sandbox.oci import linux
from cupola.sandbox.oci.cgroup import find_hierarchies
from cupola.sandbox.oci.runtime_config import LIMITS
from tests.system.as_user import COUNT, NUMBER, SUBORDINATE, Request
from tests.system.platform import CUPOLA, Platform

ETC = (Path("/etc/passwd"), Path("/etc/subuid"), Path("/etc/subgid"))
_numbers = itertools.count(1)


def missing() -> str | None:
    """Why there can be no tests with an ordinary user here, if so."""
    if os.geteuid() != 0:
        return "only root can become an ordinary user of its own"
    lacking = [name for name in ("newuidmap", "newgidmap", "crun") if shutil.which(name) is None]
    if lacking:
        return f"{', '.join(lacking)} is not installed"
    lacking = [str(path) for path in ETC if not path.exists()]
    return f"there is no {', '.join(lacking)} to put another over" if lacking else None


@dataclass(frozen=True)
class OrdinaryUser:
    """`workspace` is a directory of the tests' own."""

    workspace: Path

    def directory(self, path: Path) -> Path:
        """Make a directory of the user's."""
        path.mkdir()
        os.chown(path, NUMBER, NUMBER)
        return path

    def request(
        self,
        writable: Path,
        readable: tuple[Path, ...] = (),
        groups: tuple[Path, ...] = (),
        *,
        subordinate: bool = True,
    ) -> Request:
        hybrid = str(self.hybrid) if any(group.parent == self.hybrid for group in groups) else ""
        return Request(
            str(self.workspace), str(writable), (*map(str, readable),), (*map(str, groups),), subordinate, hybrid
        )

    @property
    def hybrid(self) -> Path:
        """Where the hierarchy of version 2 is mounted that a host with both versions has, while groups in it are delegated."""
        return self.workspace / "hybrid"

    @contextlib.contextmanager
    def delegated(self, *, hybrid: bool = False) -> Iterator[tuple[Path, ...]]:
        """Control groups that belong to the user, with all that limits and freezing take; `hybrid` takes the
        hierarchy of version 2 on a host with both.

        On leaving they must be empty of processes and groups, or this raises OSError.
        """
        hierarchies = find_hierarchies()
        name = f"cupola-tests-{os.getpid()}-{next(_numbers)}"
        closing = contextlib.ExitStack()
        if hybrid:
            self.hybrid.mkdir(exist_ok=True)
            linux.mount("cgroup2", str(self.hybrid), "cgroup2", 0)
            closing.callback(linux.unmount, str(self.hybrid))
            groups = [self.hybrid / name]
        elif hierarchies.unified is not None:
            for controller in LIMITS:
                (hierarchies.unified / "cgroup.subtree_control").write_text(f"+{controller}")
            groups = [hierarchies.unified / name]
        else:
            wanted = (*LIMITS, "freezer")
            groups = [*dict.fromkeys(hierarchies.controllers[controller] / name for controller in wanted)]
        for group in groups:
            group.mkdir()
            closing.callback(_remove_if_possible, group)
            for path in (group, *group.iterdir()):
                os.chown(path, NUMBER, NUMBER)
        with closing:
            yield tuple(groups)
            left = [path for group in groups for path in group.iterdir() if path.is_dir()]
            assert left == []
            for group in groups:
                group.rmdir()

    @property
    def has_hybrid(self) -> bool:
        """Whether this host has both versions of control groups."""
        found = find_hierarchies()
        return found.hybrid is not None or found.hidden is not None


def _remove_if_possible(group: Path) -> None:
    """Leave nothing of a test that has failed already."""
    with contextlib.suppress(OSError):
        group.rmdir()


class OrdinaryPlatform(Platform):
    """A platform that the user has started."""

    def __init__(self, data: Path, request: Request, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data, settings, request.command(*CUPOLA, "up"))
        self._request = request

    @property
    def server(self) -> int:
        return self._child(on_host=True)

    @property
    def node(self) -> int:
        """The process id of the node, as the host counts."""
        return self._child(on_host=False)

    def _child(self, *, on_host: bool) -> int:
        host = Path("/proc/self/ns/user").readlink()
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        (found,) = (int(child) for child in children if (Path(f"/proc/{child}/ns/user").readlink() == host) == on_host)
        return found

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._request.command(*CUPOLA, *arguments),
            env=self.variables, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip


def living() -> dict[int, int]:
    """The processes of ordinary users of tests, with the user that the host knows each by. What is dead and waits for its
    parent does not count."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            lines = (process / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        user = int(status["Uid"][0])
        is_ours = user == NUMBER or SUBORDINATE <= user < SUBORDINATE + COUNT
        if is_ours and status["State"][0] not in ("Z", "X"):
            found[int(process.name)] = user
    return found
