"""Become an ordinary user who exists for this process alone: `python -m tests.system.as_user REQUEST PROGRAM ARGUMENT…`.

The user stands in copies of /etc/passwd, /etc/subuid and /etc/subgid that are mounted over the host's in a mount namespace of
the process's own: nothing of the host is changed. Takes root.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from cupola.node.privileges import reveal
from cupola.sandbox.oci import linux

PROJECT = Path(__file__).parents[2]
NUMBER = 61190
NAME = "cupola-tester"
SUBORDINATE = 1 << 30
COUNT = 65536


@dataclass(frozen=True)
class Request:
    """`workspace` holds a directory `etc` for the copies. `writable` and `readable` are to be reached, whatever is above them.
    `groups` are control groups to be in. `subordinate` says whether the user has ids for others. `version_2`
    is a mount of control groups to be seen in place of the host's."""

    workspace: str
    writable: str
    readable: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    subordinate: bool = True
    version_2: str = ""

    def command(self, *program: str) -> list[str]:
        """What to run for `program` to run as the user."""
        return [
            "env",
            f"--chdir={PROJECT}",
            sys.executable,
            "-m",
            "tests.system.as_user",
            json.dumps(asdict(self)),
            *program,
        ]


def main() -> None:
    request = Request(**json.loads(sys.argv[1]))
    for group in request.groups:
        Path(group, "cgroup.procs").write_text(str(os.getpid()))
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    if request.version_2:
        linux.mount(request.version_2, "/sys/fs/cgroup", "", linux.MS_BIND)
    ids = f"{NAME}:{SUBORDINATE}:{COUNT}\n" if request.subordinate else ""
    added = {"passwd": f"{NAME}:x:{NUMBER}:{NUMBER}::{request.writable}:/bin/sh\n", "subuid": ids, "subgid": ids}
    for name, line in added.items():
        copy = Path(request.workspace, f"{name}-{os.getpid()}")
        copy.write_text(Path("/etc", name).read_text() + line)
        copy.chmod(0o644)
        linux.mount(str(copy), f"/etc/{name}", "", linux.MS_BIND)
        copy.unlink()
    reveal(Path(request.writable), [PROJECT, *(Path(path) for path in request.readable)])
    os.chdir(PROJECT)
    os.setgroups([])
    os.setresgid(NUMBER, NUMBER, NUMBER)
    os.setresuid(NUMBER, NUMBER, NUMBER)
    os.environ["HOME"], os.environ["USER"] = request.writable, NAME
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - what a test wants to be run


if __name__ == "__main__":
    main()
