"""What this machine offers for making sandboxes: facts, without a judgement."""

from __future__ import annotations

import http.client
import json
import os
import platform
import re
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola.host.subordinate import SUBGID, SUBUID, largest_range, user_name
from cupola.host.trial import try_user_namespace
from cupola.sandbox.docker.requirements import faults
from cupola.sandbox.oci.cgroup import Hierarchies, find_hierarchies
from cupola.sandbox.oci.delegation import find_delegation

ENGINE_DEADLINE = 5.0
PROGRAM_DEADLINE = 5.0
_MOST_BYTES = 1024 * 1024
_CAP_SYS_ADMIN = 21


@dataclass(frozen=True)
class DockerEngine:
    """What listens on the Docker engine's socket. `problem` says why it does not answer; `faults` why it will not do."""

    socket: Path
    version: str = ""
    faults: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Rootless:
    """What an ordinary user has for making sandboxes.

    `forbidding` are settings of the kernel by which there are no user namespaces, `problem` is what went wrong in one that
    was tried, `lacking` are the programs that map ids and are not there, `ids` is how many subordinate ids the user has for
    users and for groups, `controllers` are those of control groups that are delegated.
    """

    forbidding: tuple[str, ...]
    problem: str
    lacking: tuple[str, ...]
    ids: tuple[int, int]
    controllers: frozenset[str]


@dataclass(frozen=True)
class Machine:
    """Facts about the host and this process. `programs` maps the name of a program on the PATH to its version. `rootless` is
    None for root."""

    system: str
    architecture: str
    kernel: str
    root: bool
    may_mount: bool
    overlayfs: bool
    seccomp: bool
    hierarchies: Hierarchies
    controllers: frozenset[str]
    programs: dict[str, str]
    rootless: Rootless | None

    @property
    def kernel_version(self) -> tuple[int, int]:
        """The first two numbers of the kernel's release."""
        numbers = re.match(r"(\d+)\.(\d+)", self.kernel)
        return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def look(oci_runtime: str = "") -> Machine:
    """Look at the machine. Blocks for some milliseconds. `oci_runtime` is the setting. Without root, the calling process
    must have no threads."""
    hierarchies = find_hierarchies(_read(Path("/proc/self/mountinfo")))
    return Machine(
        system=platform.system(),
        architecture=platform.machine(),
        kernel=platform.release(),
        root=os.geteuid() == 0,
        may_mount=_has_capability(_CAP_SYS_ADMIN),
        overlayfs=_has_overlayfs(),
        seccomp=Path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        hierarchies=hierarchies,
        controllers=_controllers(hierarchies),
        programs=_versions({oci_runtime, "crun", "runc", "runsc", "nft"} - {""}),
        rootless=None if os.geteuid() == 0 else _rootless(hierarchies),
    )


def ask_engine(path: Path) -> DockerEngine:
    """Ask what listens on a Unix socket what it is. Blocks for some milliseconds, 10 s when it hangs."""
    try:
        version, info = _get(path, "/version"), _get(path, "/info")
        return DockerEngine(path, str(version["Version"]), tuple(faults(version, info)))
    except FileNotFoundError:
        return DockerEngine(path, problem="there is no such socket")
    except PermissionError:
        return DockerEngine(path, problem="this user may not use it")
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return DockerEngine(path, problem=f"it does not answer ({str(error) or type(error).__name__})")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ENGINE_DEADLINE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _get(path: Path, target: str) -> Any:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", target)
        return json.loads(connection.getresponse().read(_MOST_BYTES))
    finally:
        connection.close()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _has_capability(number: int) -> bool:
    line = re.search(r"^CapEff:\s*([0-9a-f]+)$", _read(Path("/proc/self/status")), re.MULTILINE)
    return line is not None and bool(int(line[1], 16) >> number & 1)


def _has_overlayfs() -> bool:
    if re.search(r"\boverlay$", _read(Path("/proc/filesystems")), re.MULTILINE):
        return True
    # A module is loaded by the first mount.
    modules = Path("/lib/modules") / platform.release()
    return any("/overlay.ko" in _read(modules / name) for name in ("modules.dep", "modules.builtin"))


def _controllers(hierarchies: Hierarchies) -> frozenset[str]:
    if hierarchies.unified is None:
        return frozenset(hierarchies.controllers)
    found = set(_read(hierarchies.unified / "cgroup.controllers").split())
    # Version 2 freezes without a controller of that name. The root group has no file for it, every other has.
    return frozenset(found | {"freezer"})


def _versions(names: set[str]) -> dict[str, str]:
    found = {}
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            said = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=PROGRAM_DEADLINE, check=False
            ).stdout
        except (OSError, subprocess.TimeoutExpired):
            continue
        number = re.search(r"\d[\w.+~-]*", said)
        found[name] = number[0] if number else "of unknown version"
    return found


def _rootless(hierarchies: Hierarchies) -> Rootless:
    # A file that does not exist forbids nothing.
    values = {
        "user.max_user_namespaces": "0",
        "kernel.unprivileged_userns_clone": "0",
        "kernel.apparmor_restrict_unprivileged_userns": "1",
    }
    found = {name: _read(Path("/proc/sys") / name.replace(".", "/")).strip() for name in values}
    name, number = user_name(), os.geteuid()
    ranges = (largest_range(file, name, number) for file in (SUBUID, SUBGID))
    uids, gids = (0 if ids is None else ids.count for ids in ranges)
    return Rootless(
        forbidding=tuple(f"{name}={value}" for name, value in values.items() if found[name] == value),
        problem=try_user_namespace(),
        lacking=tuple(program for program in ("newuidmap", "newgidmap") if shutil.which(program) is None),
        ids=(uids, gids),
        controllers=find_delegation(hierarchies).controllers,
    )
