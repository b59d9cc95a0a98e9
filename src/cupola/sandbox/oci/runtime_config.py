"""The OCI runtime configuration (`config.json`, runtime specification 1.0) of a sandbox."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cupola.sandbox.base import AUTHORITIES, MIB, SandboxError, SandboxSpec
from cupola.sandbox.oci import seccomp

CAPABILITIES = (
    "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID",
    "CAP_SETUID",
)  # fmt: skip
"""Docker's default set without what an agent has no use for: raw sockets, device nodes, chroot, file capabilities."""

HOME = "/home/session"
FILES = "/files"
PIDS_LIMIT = 1024
OPEN_FILES = 65536
FIRST_ID = 1
"""Root of sandboxes that have a user namespace of their own: not 0, who is the user that runs the platform."""
CPU_PERIOD = 100_000
"""Microseconds over which the processor share is enforced."""

CPU_SHARES = 1024
"""Weight of a whole core against other sandboxes, when they want more than there is."""

MASKED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap",
    "/sys/firmware",
)  # fmt: skip
MASKED_OF_HOST_SYS = (
    "/sys/fs/bpf", "/sys/fs/cgroup", "/sys/fs/fuse", "/sys/fs/pstore", "/sys/kernel/config", "/sys/kernel/debug",
    "/sys/kernel/security", "/sys/kernel/tracing",
)  # fmt: skip
"""What is mounted there on the host, and shows where the host's `/sys` does."""
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
LIMITS = frozenset({"memory", "pids", "cpu"})
"""The controllers of control groups that hold a sandbox to its limits."""
CONTROLLERS = LIMITS | {"devices"}
_DEVICES = (
    # type, major, minor: null, zero, full, random, urandom, tty, pseudo terminals
    ("c", 1, 3), ("c", 1, 5), ("c", 1, 7), ("c", 1, 8), ("c", 1, 9), ("c", 5, 0), ("c", 5, 2), ("c", 136, None),
)  # fmt: skip


def runtime_config(
    spec: SandboxSpec,
    root: Path,
    hosts: Path,
    resolver: Path,
    authorities: Path | None,
    home: Path,
    files: Path,
    cgroup: str,
    network: str,
    user: User,
    controllers: frozenset[str] = CONTROLLERS,
    ids: int | None = None,
) -> dict[str, Any]:
    """The whole configuration. `root` is the mounted root, `hosts`, `resolver` and `authorities` are files that become
    `/etc/hosts`, `/etc/resolv.conf` and, if there is one, `AUTHORITIES`; `home` and `files` are the host's directories for
    what the specification names so; `network` is the path of a network namespace. `controllers` are those of CONTROLLERS
    that can be used. With `ids`, the sandbox has a user namespace of its own, in which so many ids are those from FIRST_ID
    on of this one."""
    open_files = open_files_limit()
    capabilities = list(CAPABILITIES)
    return {
        "ociVersion": "1.0.2",
        "root": {"path": str(root), "readonly": False},
        "hostname": spec.hostname,
        "process": {
            "terminal": False,
            "args": list(spec.arguments),
            "env": [f"{name}={value}" for name, value in spec.environment],
            "cwd": spec.working_directory or "/",
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": open_files, "hard": open_files},
                        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
            # Under memory pressure of the whole host an agent must go before the platform.
            "oomScoreAdj": 500,
        },
        "mounts": [
            # crun mounts the root once more and forgets its flags, which it cannot in a user namespace. It takes no `/` here.
            *([{"destination": "/.", "type": "bind", "source": str(root),
                "options": ["bind", "remount", "nosuid", "nodev"]}] if ids is None else []),
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",  # noqa: S108 - a mount point inside
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            _sys(of_host=ids is not None),
            _bind(hosts, "/etc/hosts", "ro"),
            _bind(resolver, "/etc/resolv.conf", "ro"),
            *([] if authorities is None else [_bind(authorities, AUTHORITIES, "ro")]),
            _bind(home, HOME, "rw"),
            _bind(files, FILES, "rw"),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")),
                {"type": "network", "path": network},
                *([] if ids is None else [{"type": "user"}]),
            ],
            **({} if ids is None else {
                f"{kind}Mappings": [{"containerID": 0, "hostID": FIRST_ID, "size": ids}] for kind in ("uid", "gid")
            }),
            "resources": {name: value for name, value in _resources(spec).items() if name in controllers},
            "seccomp": seccomp.profile(),
            "maskedPaths": [*MASKED, *(() if ids is None else MASKED_OF_HOST_SYS)],
            "readonlyPaths": list(READ_ONLY),
        },
    }  # fmt: skip


def _sys(*, of_host: bool) -> dict[str, Any]:
    """`/sys`. A user namespace may mount no other than that of the namespace which its network belongs to."""
    kind, source, bind = ("none", "/sys", ["rbind"]) if of_host else ("sysfs", "sysfs", [])
    options = [*bind, "nosuid", "noexec", "nodev", "ro"]
    return {"destination": "/sys", "type": kind, "source": source, "options": options}


def _resources(spec: SandboxSpec) -> dict[str, Any]:
    """By the controller that each is for."""
    return {
        "memory": {"limit": spec.memory, "swap": spec.memory},
        "cpu": {"quota": max(1000, int(spec.cpu * CPU_PERIOD)), "period": CPU_PERIOD,
                "shares": max(2, int(spec.cpu * CPU_SHARES))},
        "pids": {"limit": PIDS_LIMIT},
        "devices": [
            {"allow": False, "access": "rwm"},
            *({"allow": True, "type": kind, "major": major, "access": "rwm"}
              | ({} if minor is None else {"minor": minor}) for kind, major, minor in _DEVICES),
        ],
    }  # fmt: skip


def version_1_limits(spec: SandboxSpec) -> dict[str, int]:
    """The files of control groups version 1 that a runtime would write for the resources of a sandbox, in order."""
    memory, cpu, pids = (_resources(spec)[name] for name in ("memory", "cpu", "pids"))
    return {
        "memory.limit_in_bytes": memory["limit"], "memory.memsw.limit_in_bytes": memory["swap"],
        "cpu.cfs_period_us": cpu["period"], "cpu.cfs_quota_us": cpu["quota"], "cpu.shares": cpu["shares"],
        "pids.max": pids["limit"],
    }  # fmt: skip


def open_files_limit() -> int:
    """How many files each process of a sandbox may have open; never more than this process may."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES if most_files == resource.RLIM_INFINITY else min(OPEN_FILES, most_files)


def _bind(source: Path, destination: str, mode: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": str(source),
            "options": ["bind", mode, "nosuid", "nodev"]}  # fmt: skip


@dataclass(frozen=True)
class User:
    """Who the process runs as, looked up in the image's own user database."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def outside(self, first_id: int) -> User:
        """The same where the user namespace is one in which the sandbox's ids begin with `first_id`."""
        return User(first_id + self.uid, first_id + self.gid)


def resolve_user(text: str, layers: tuple[Path, ...]) -> User:
    """The `User` of an image's configuration: `""`, `name`, `uid`, each with an optional `:group`.

    Raises SandboxError when a name is not in the image's `/etc/passwd` or `/etc/group`.
    """
    name, _, group = text.partition(":")
    users = [line.split(":") for line in _image_file(layers, "passwd") if line.count(":") >= 3]
    groups = [line.split(":") for line in _image_file(layers, "group") if line.count(":") >= 3]
    entry = next((row for row in users if name in (row[0], row[2])), None) if name else None
    if not name:
        uid, gid = 0, 0
    elif entry is not None and entry[2].isdecimal() and entry[3].isdecimal():
        uid, gid = int(entry[2]), int(entry[3])
    elif name.isdecimal():
        uid, gid = int(name), 0
    else:
        raise SandboxError(f"the image's USER is {name!r}, which its /etc/passwd does not have")
    if group:
        gid = _group_id(group, groups)
    member_of = tuple(
        int(row[2]) for row in groups if entry is not None and row[2].isdecimal() and entry[0] in row[3].split(",")
    )
    return User(uid, gid, member_of)


def _group_id(group: str, groups: list[list[str]]) -> int:
    row = next((row for row in groups if group in (row[0], row[2])), None)
    if row is not None and row[2].isdecimal():
        return int(row[2])
    if group.isdecimal():
        return int(group)
    raise SandboxError(f"the image's USER names the group {group!r}, which its /etc/group does not have")


def _image_file(layers: tuple[Path, ...], name: str) -> list[str]:
    """The lines of `/etc/{name}` in the topmost layer that has it as a regular file; links are not followed."""
    for layer in reversed(layers):
        etc = layer / "etc"
        path = etc / name
        if etc.is_symlink() or path.is_symlink() or not path.is_file():
            continue
        if path.stat().st_size > MIB:
            raise SandboxError(f"the image's /etc/{name} is larger than 1 MiB")
        return path.read_text(errors="replace").splitlines()
    return []
