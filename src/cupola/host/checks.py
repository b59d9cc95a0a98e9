"""What a machine must have for each driver, and what would be of use besides: named checks with a finding and a fix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cupola.host.machine import DockerEngine, Machine, Rootless
from cupola.host.subordinate import SUBGID, SUBUID, USUAL_COUNT

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
    if machine.rootless is not None:
        return _rootless_checks(machine, machine.rootless, oci_runtime)
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


def _rootless_checks(machine: Machine, rootless: Rootless, oci_runtime: str) -> list[Check]:
    return [
        _system(machine),
        _rootless_kernel(machine),
        _user_namespaces(rootless),
        _mapping_programs(rootless),
        _subordinate_ids(rootless),
        _delegation(rootless),
        _rootless_runtime(machine, oci_runtime),
        _seccomp(machine),
        Check("network", "optional", "sandboxes have no way out without root", "run `cupola up` as root"),
    ]


def docker_checks(machine: Machine, engine: DockerEngine) -> list[Check]:
    """What the `docker` driver needs."""
    return [_system(machine), _root(machine, "the layers of images are unpacked by root"), _engine(engine)]


def optional_checks(machine: Machine) -> list[Check]:
    """What no driver needs today."""
    return [
        _program(
            machine, "gVisor", "runsc", "apt install runsc, for sandboxes with a kernel of their own: see oci_runtime"
        ),
        _program(
            machine, "nftables", "nft", "apt install nftables; without it sandboxes of the oci driver have no way out"
        ),
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


def _rootless_kernel(machine: Machine) -> Check:
    if machine.kernel_version < ATTACHING_KERNEL:
        return Check(
            "kernel", "missing", f"{machine.kernel} is too old", "use Linux 5.12 or newer, or run this as root"
        )
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
    fix = "apt install crun" if "crun" in wanted else "install it, or change the setting oci_runtime"
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


def _user_namespaces(rootless: Rootless) -> Check:
    name = "user namespaces"
    if not rootless.problem:
        return Check(name, "ok", "this user can have them, with overlayfs and /proc in them")
    if rootless.forbidding:
        settings = " ".join(f"{setting.partition('=')[0]}={_ALLOWING[setting]}" for setting in rootless.forbidding)
        finding = f"{rootless.problem}: {', '.join(rootless.forbidding)}"
        return Check(name, "missing", finding, f"as root: sysctl -w {settings}, or run `cupola up` as root")
    return Check(
        name, "missing", rootless.problem,
        "start it outside of a container and of what else restricts them, or run `cupola up` as root",
    )  # fmt: skip


_ALLOWING = {
    "user.max_user_namespaces=0": "10000",
    "kernel.unprivileged_userns_clone=0": "1",
    "kernel.apparmor_restrict_unprivileged_userns=1": "0",
}


def _mapping_programs(rootless: Rootless) -> Check:
    if rootless.lacking:
        return Check(
            "mapping of ids", "missing", f"no {' and '.join(rootless.lacking)} on the PATH", "apt install uidmap"
        )
    return Check("mapping of ids", "ok", "newuidmap and newgidmap")


def _subordinate_ids(rootless: Rootless) -> Check:
    name, (uids, gids) = "subordinate ids", rootless.ids
    fix = (
        f"as root: usermod --add-subuids 100000-{99999 + USUAL_COUNT} --add-subgids 100000-{99999 + USUAL_COUNT} USER, with "
        "a range that nobody else has"
    )
    lacking = [str(file) for file, count in ((SUBUID, uids), (SUBGID, gids)) if count == 0]
    if lacking:
        return Check(name, "missing", f"this user has no line in {' and '.join(lacking)}", fix)
    finding = f"{uids} of users, {gids} of groups"
    if min(uids, gids) < USUAL_COUNT:
        return Check(name, "optional", f"{finding}: images that use higher numbers cannot be unpacked", fix)
    return Check(name, "ok", finding)


def _delegation(rootless: Rootless) -> Check:
    name = "control groups"
    lacking = [controller for controller in CONTROLLERS if controller not in rootless.controllers]
    if not lacking:
        return Check(name, "ok", f"delegated to this user, with {', '.join(CONTROLLERS)}")
    without = [name for name in lacking if name != "freezer"]
    effects = [f"no limits of {', '.join(without)}"] if without else []
    if "freezer" in lacking:
        effects.append("no freezing of idle sandboxes")
    return Check(
        name, "optional", f"{', '.join(lacking)} not delegated to this user: {' and '.join(effects)}",
        "systemd-run --user --scope -p Delegate=yes cupola up; see docs/howto/rootless.md",
    )  # fmt: skip


def _rootless_runtime(machine: Machine, oci_runtime: str) -> Check:
    if oci_runtime and Path(oci_runtime).name != "crun":
        finding = f"the setting oci_runtime is {oci_runtime}; without root it can be crun only"
        return Check("OCI runtime", "missing", finding, "change the setting oci_runtime, or run `cupola up` as root")
    return _runtime(machine, (oci_runtime or "crun",))
