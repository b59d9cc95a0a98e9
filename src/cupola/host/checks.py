"""What a machine must have for each driver, and what would be of use besides: named checks with a finding and a fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cupola.host.machine import DockerEngine, Machine

Verdict = Literal["ok", "missing", "optional"]
OCI_RUNTIMES = ("crun", "runc")
CONTROLLERS = ("memory", "pids", "cpu", "freezer")
OLDEST_KERNEL = (5, 3)
ATTACHING_KERNEL = (5, 12)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `missing` is needed and not there; `optional` is not there and not needed."""

    name: str
    verdict: Verdict
    finding: str
    fix: str = ""


def oci_checks(machine: Machine, oci_runtime: str = "") -> list[Check]:
    """What the `oci` driver needs. `oci_runtime` is the setting."""
    return [
        _system(machine),
        _root(machine, "mounts, namespaces and control groups are made by root"),
        _mounts(machine),
        _kernel(machine),
        _overlayfs(machine),
        _control_groups(machine),
        _runtime(machine, (oci_runtime,) if oci_runtime else OCI_RUNTIMES),
        _seccomp(machine),
    ]


def docker_checks(machine: Machine, engine: DockerEngine) -> list[Check]:
    """What the `docker` driver needs."""
    return [_system(machine), _root(machine, "the layers of images are unpacked by root"), _engine(engine)]


def optional_checks(machine: Machine) -> list[Check]:
    """What no driver needs today."""
    return [
        _program(machine, "gVisor", "runsc", "install runsc for sandboxes with a kernel of their own; not used yet"),
        _program(
            machine, "nftables", "nft", "apt install nftables; without it sandboxes of the oci driver have no way out"
        ),
        _user_namespaces(machine),
        _delegation(machine),
    ]


def missing(checks: list[Check]) -> list[Check]:
    """The checks that keep a driver from working."""
    return [check for check in checks if check.verdict == "missing"]


def _system(machine: Machine) -> Check:
    found = f"{machine.system} on {machine.architecture}"
    if (machine.system, machine.architecture) == ("Linux", "x86_64"):
        return Check("system", "ok", found)
    return Check("system", "missing", f"{found}; agents are images for Linux on x86_64", "use such a machine")


def _root(machine: Machine, why: str) -> Check:
    if machine.root:
        return Check("root", "ok", "this user is root")
    return Check("root", "missing", f"this user is not root; {why}", "run `cupola up` as root")


def _mounts(machine: Machine) -> Check:
    if machine.may_mount:
        return Check("mounts", "ok", "this process may mount")
    return Check(
        "mounts", "missing", "this process may not mount", "run as root, outside of a container or in a privileged one"
    )


def _kernel(machine: Machine) -> Check:
    if machine.kernel_version < OLDEST_KERNEL:
        return Check("kernel", "missing", f"{machine.kernel} is too old", "use Linux 5.3 or newer")
    if machine.kernel_version < ATTACHING_KERNEL:
        return Check("kernel", "optional", machine.kernel, "Linux 5.12 or newer lets sandboxes be made ahead")
    return Check("kernel", "ok", machine.kernel)


def _overlayfs(machine: Machine) -> Check:
    if machine.overlayfs:
        return Check("overlayfs", "ok", "the kernel has it")
    return Check("overlayfs", "missing", "the kernel does not have it", "modprobe overlay, or another kernel")


def _control_groups(machine: Machine) -> Check:
    hierarchies = machine.hierarchies
    if not hierarchies.roots:
        return Check(
            "control groups",
            "missing",
            "none are mounted",
            "mount them at /sys/fs/cgroup, as systemd or cgroupfs-mount do",
        )
    version = "version 2" if hierarchies.unified else "version 1 and 2" if hierarchies.hybrid else "version 1"
    lacking = [name for name in CONTROLLERS if name not in machine.controllers]
    if lacking:
        return Check(
            "control groups", "missing", f"{version} without {', '.join(lacking)}",
            "switch the controllers on by the kernel's command line (such as cgroup_enable=memory)",
        )  # fmt: skip
    return Check("control groups", "ok", f"{version} with {', '.join(CONTROLLERS)}")


def _runtime(machine: Machine, wanted: tuple[str, ...]) -> Check:
    for name in wanted:
        if name in machine.programs:
            return Check("OCI runtime", "ok", f"{name} {machine.programs[name]}")
    named = " or ".join(wanted)
    fix = "apt install crun" if wanted == OCI_RUNTIMES else "install it, or change the setting oci_runtime"
    return Check("OCI runtime", "missing", f"no {named} on the PATH", fix)


def _seccomp(machine: Machine) -> Check:
    if machine.seccomp:
        return Check("seccomp", "ok", "the kernel filters system calls")
    return Check(
        "seccomp", "missing", "the kernel cannot filter system calls", "use a kernel with CONFIG_SECCOMP_FILTER"
    )


def _engine(engine: DockerEngine) -> Check:
    if engine.problem:
        fix = "apt install docker.io and start it, or name its socket by the setting docker_socket"
        return Check("Docker engine", "missing", f"{engine.socket}: {engine.problem}", fix)
    if engine.faults:
        return Check("Docker engine", "missing", "; ".join(engine.faults), "use another engine, or change this one")
    return Check("Docker engine", "ok", f"{engine.version} at {engine.socket}")


def _program(machine: Machine, name: str, program: str, fix: str) -> Check:
    if program in machine.programs:
        return Check(name, "ok", f"{program} {machine.programs[program]}")
    return Check(name, "optional", f"no {program} on the PATH", fix)


def _user_namespaces(machine: Machine) -> Check:
    name = "user namespaces"
    if not machine.rootless.user_namespaces:
        return Check(
            name, "optional", "only root may make them", "a mode without root would need them; there is none yet"
        )
    if not machine.rootless.sub_ids:
        fix = "a mode without root would need uidmap and lines in /etc/subuid and /etc/subgid; there is none yet"
        return Check(name, "optional", "every user may make them, but this one has no ids to give them", fix)
    return Check(name, "ok", "every user may make them")


def _delegation(machine: Machine) -> Check:
    name = "delegated control groups"
    lacking = [controller for controller in ("memory", "pids", "cpu") if controller not in machine.rootless.controllers]
    if lacking:
        fix = "a mode without root would need version 2 and systemd's Delegate=yes; there is none yet"
        return Check(name, "optional", f"this user's group does not have {', '.join(lacking)}", fix)
    return Check(name, "ok", "this user's group has memory, pids, cpu")
