"""Hosts unlike this one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cupola.host.machine import DockerEngine, Machine, Rootless
from cupola.sandbox.oci.cgroup import Hierarchies

SOCKET = Path("/run/docker.sock")
UNIFIED = Hierarchies(Path("/sys/fs/cgroup"), {}, None)
LEGACY = Hierarchies(None, {name: Path("/sys/fs/cgroup") / name for name in ("memory", "cpu")}, None)
NO_GROUPS = Hierarchies(None, {}, None)

SERVER = Machine(
    system="Linux",
    architecture="x86_64",
    kernel="6.12.1-amd64",
    root=True,
    may_mount=True,
    overlayfs=True,
    seccomp=True,
    hierarchies=UNIFIED,
    controllers=frozenset({"memory", "pids", "cpu", "freezer", "io"}),
    programs={"crun": "1.21", "nft": "1.1.1"},
    rootless=None,
)
"""A machine that has everything."""

CAPABLE = Rootless((), "", (), (65536, 65536), frozenset({"memory", "pids", "cpu", "freezer"}))
LAPTOP = replace(SERVER, root=False, may_mount=False, rootless=CAPABLE)
"""The same, looked at by an ordinary user to whom everything is given."""
ENGINE = DockerEngine(SOCKET, "27.1.0")
NO_ENGINE = DockerEngine(SOCKET, problem="there is no such socket")
