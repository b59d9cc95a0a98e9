"""An ordinary user of a host, for tests of what works without root: made for one process at a time, see `as_user`."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cupola.sandbox.oci.cgroup import find_hierarchies
from cupola.sandbox.oci.delegation import RESERVED
from cupola.sandbox.oci.runtime_config import LIMITS
from tests.system.as_user import NUMBER, Request

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
        return Request(str(self.workspace), str(writable), (*map(str, readable),), (*map(str, groups),), subordinate)

    @contextlib.contextmanager
    def delegated(self, *controllers: str) -> Iterator[tuple[Path, ...]]:
        """Control groups that belong to the user: with these controllers, else with all that limits and freezing take.

        On leaving they must be empty of processes and groups, or this raises OSError.
        """
        hierarchies = find_hierarchies()
        name = f"cupola-tests-{os.getpid()}-{next(_numbers)}"
        if hierarchies.unified is not None:
            for controller in controllers or LIMITS:
                (hierarchies.unified / "cgroup.subtree_control").write_text(f"+{controller}")
            groups = [hierarchies.unified / name]
        else:
            wanted = controllers or (*LIMITS, "freezer")
            groups = [*dict.fromkeys(hierarchies.controllers[controller] / name for controller in wanted)]
        for group in groups:
            group.mkdir()
            for path in (group, *group.iterdir()):
                os.chown(path, NUMBER, NUMBER)
        try:
            yield tuple(groups)
        finally:
            for group in groups:
                assert [path.name for path in group.iterdir() if path.is_dir()] in ([], [RESERVED])
                for path in (group / RESERVED, group):
                    if path.exists():
                        path.rmdir()
