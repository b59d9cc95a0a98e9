"""Takes walls down, one by one, in the configuration that an OCI runtime is given. Nothing in the platform can do this."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.attacks.attempts.registry import Wall

NAMESPACES = {Wall.PID: "pid", Wall.IPC: "ipc", Wall.UTS: "uts", Wall.CGROUP: "cgroup", Wall.NETWORK: "network"}


@dataclass(frozen=True)
class HostPlaces:
    """What becomes visible inside at the same path when its wall is gone; `layer` becomes `/layer`, without an overlay."""

    secrets: Path
    sessions: Path
    layer: Path


def weaken(config: dict[str, Any], walls: Iterable[Wall], places: HostPlaces) -> None:
    """Take the walls out of a runtime configuration, as far as they are in it: NOSUID and NODEV of the root are not."""
    for wall in walls:
        _weaken(config, wall, places)


def _weaken(config: dict[str, Any], wall: Wall, places: HostPlaces) -> None:
    process, linux = config["process"], config["linux"]
    mounts = {mount["destination"]: mount for mount in config["mounts"]}
    match wall:
        case Wall.SECCOMP:
            del linux["seccomp"]
        case Wall.CAPABILITIES:
            everything = _own_capabilities()
            process["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), everything)
        case Wall.NO_NEW_PRIVILEGES:
            process["noNewPrivileges"] = False
        case Wall.NOSUID | Wall.NODEV:
            for mount in (mounts["/."], mounts["/files"], mounts["/home/session"]):
                mount["options"].remove(str(wall))
        case Wall.DEVICES:
            linux["resources"]["devices"] = [{"allow": True, "access": "rwm"}]
        case Wall.MASKED:
            linux["maskedPaths"] = []
        case Wall.READ_ONLY:
            linux["readonlyPaths"] = []
        case Wall.SYSFS:
            mounts["/sys"]["options"].remove("ro")
        case Wall.HOST_PATHS:
            _show(config, places.secrets)
        case Wall.OTHER_SESSIONS:
            _show(config, places.sessions)
        case Wall.LAYERS:
            _show(config, places.layer, "/layer")
        case Wall.PIDS_LIMIT:
            del linux["resources"]["pids"]
        case Wall.MEMORY_LIMIT:
            del linux["resources"]["memory"]
        case Wall.OPEN_FILES | Wall.CORE_LIMIT:
            kind = "RLIMIT_NOFILE" if wall is Wall.OPEN_FILES else "RLIMIT_CORE"
            process["rlimits"] = [limit for limit in process["rlimits"] if limit["type"] != kind]
        case Wall.TMPFS_SIZE:
            for mount in (mounts["/dev"], mounts["/dev/shm"]):  # noqa: S108 - a mount point inside
                mount["options"].remove("size=65536k")
        case _:
            kind = NAMESPACES[wall]
            linux["namespaces"] = [namespace for namespace in linux["namespaces"] if namespace["type"] != kind]
            if wall is Wall.UTS:
                del config["hostname"]


def _show(config: dict[str, Any], directory: Path, target: str = "") -> None:
    config["mounts"].append(
        {"destination": target or str(directory), "type": "bind", "source": str(directory), "options": ["bind", "rw"]}
    )


def _own_capabilities() -> list[str]:
    have = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapPrm:"))
    bits = int(have.split()[1], 16)
    return [name for number, name in enumerate(_CAPABILITIES) if bits >> number & 1]


_CAPABILITIES = tuple(
    f"CAP_{name.upper()}"
    for name in (
        "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
        "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin "
        "sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override "
        "mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
    ).split()
)
