"""What a running platform has on this machine beyond what its live sandboxes need."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cupola.installation import DataFolder
from cupola.sandbox.oci.cgroup import find_hierarchies
from cupola.sandbox.oci.network.firewall import UPLINK
from cupola.sandbox.oci.network.namespace import enter
from cupola.sandbox.oci.network.nftables import Nftables
from cupola.sandbox.oci.network.pool import SIZE as NETWORKS_AHEAD
from cupola.sandbox.oci.network.router import interface_name

OTHER_NAMESPACES = 2 + 2 * NETWORKS_AHEAD
"""Network namespaces that a server holds beside those of sandboxes: the host's, the router's, those made ahead."""

LINGERING = 2
"""Networks of sandboxes that are gone, each held by a thread of the server until it enters another one."""
HELPERS = 4
"""Children of a server beside its sandboxes: dead helpers of an OCI runtime that the next start reaps, at most one for each
start at once, and the meter of the disk."""


class Installation:
    """A platform's traces by name: groups, directories, mounts, processes, network."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.name = data.joinpath("installation").read_text().replace("-", "")[:12]
        self.run = Path("/run/cupola") / self.name
        self.groups = tuple(root / f"cupola-{self.name}" for root in find_hierarchies().roots)

    def sandboxes(self) -> frozenset[str]:
        """The sandboxes that have a control group in any hierarchy."""
        return frozenset(entry.name for group in self.groups if group.exists() for entry in group.glob("s-*"))

    def processes(self, sandbox: str) -> frozenset[int]:
        """The processes of a sandbox, as the host numbers them."""
        found: set[int] = set()
        for group in self.groups:
            try:
                found.update(map(int, (group / sandbox / "cgroup.procs").read_text().split()))
            except (FileNotFoundError, OSError):
                continue
        return frozenset(found)

    def guids(self) -> dict[str, str]:
        """The id of each session by the name of its directory."""
        with contextlib.closing(
            sqlite3.connect(f"file:{DataFolder(self.data).database}?mode=ro", uri=True)
        ) as database:
            return dict(database.execute("SELECT guid, id FROM sessions"))

    def session_of(self, process: int) -> str | None:
        """The name of the directory of the session whose files a process of a sandbox has, None when it has none."""
        try:
            mounts = Path(f"/proc/{process}/mountinfo").read_text()
        except OSError:
            return None
        found = re.search(r"/volumes/([^/ ]+)/files /files ", mounts)
        return None if found is None else found[1]

    def leaks(self, server: int, ahead: int) -> list[str]:
        """What is there without need. To be asked while nothing is being started or stopped; `ahead` is how many sandboxes
        may have been made for sessions to come."""
        sandboxes = self.sandboxes()
        found = []
        for directory in (self.run / "bundles", self.run / "state", self.data / "sandboxes"):
            names = {entry.name for entry in directory.glob("[!.]*")}
            found += [f"{directory / name} without a group" for name in names - sandboxes]
            found += [f"group of {name} without {directory / name}" for name in sandboxes - names]
        inside = {process for sandbox in sandboxes for process in self.processes(sandbox)}
        found += [f"group of {sandbox} without processes" for sandbox in sandboxes if not self.processes(sandbox)]
        found += [f"group {path} of a sandbox that is gone" for path in self._missing_groups(sandboxes)]
        # The node's own child is the server, which runs the same program.
        others = [
            f"child {child} of the server"
            for child in _children(server)
            if child not in inside and _arguments(child) != _arguments(server)
        ]
        found += others if len(others) > HELPERS else []
        found += self._mounts(server)
        found += self._network(server, len(sandboxes))
        found += self._directories(ahead)
        return found

    def _missing_groups(self, sandboxes: frozenset[str]) -> Iterator[str]:
        counts = {group: {entry.name for entry in group.glob("s-*")} for group in self.groups if group.exists()}
        full = max((len(names) for names in counts.values()), default=0)
        for group, names in counts.items():
            if 0 < len(names) < full:
                yield f"{group} has {len(names)} of {len(sandboxes)}"

    def _mounts(self, server: int) -> Iterator[str]:
        for line in Path(f"/proc/{server}/mountinfo").read_text().splitlines():
            if str(self.run) in line or str(self.data / "sandboxes") in line:
                yield f"mount of the server: {line}"

    def _directories(self, ahead: int) -> list[str]:
        known = self.guids()
        unknown = [entry for entry in (self.data / "volumes").iterdir() if entry.name not in known]
        return [f"{entry} without a session" for entry in unknown] if len(unknown) > ahead else []

    def _network(self, server: int, sandboxes: int) -> list[str]:
        namespaces = _namespaces_of(server)
        found = []
        if len(namespaces) > sandboxes + OTHER_NAMESPACES:
            found.append(f"{len(namespaces)} network namespaces for {sandboxes} sandboxes")
        host = [name for _, name in socket.if_nameindex() if name == interface_name(self.name)]
        routers = 0
        for path in namespaces.values():
            # A thread that has entered a namespace is of no use for anything else.
            with ThreadPoolExecutor(1) as thread:
                looked = thread.submit(_look_into_router, path).result()
            if looked is None:
                continue
            routers += 1
            links, connected = looked
            if connected != sandboxes:
                found.append(f"the router's rules know {connected} sandboxes, there are {sandboxes}")
            if not sandboxes <= links <= sandboxes + NETWORKS_AHEAD + LINGERING:
                found.append(f"the router has {links} interfaces for {sandboxes} sandboxes")
        if routers != 1 or len(host) != 1:
            found.append(f"{routers} routers and {len(host)} interfaces of the host to them")
        return found


def _children(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


def _arguments(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def _namespaces_of(process: int) -> dict[str, str]:
    """The network namespaces that a process holds by descriptors: a path to each by its identity."""
    found: dict[str, str] = {}
    for entry in Path(f"/proc/{process}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:
            continue
        if target.startswith("net:"):
            found[target] = str(entry)
    return found


def _look_into_router(path: str) -> tuple[int, int] | None:
    """How many interfaces and how many sandboxes with rules a router has; None when the namespace is not one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # the server has closed it since it was listed
        return None
    try:
        enter(descriptor)
    finally:
        os.close(descriptor)
    names = [name for _, name in socket.if_nameindex()]
    if UPLINK not in names:
        return None
    rules = Nftables()
    try:
        text = rules.run("list set ip router connected")
    finally:
        rules.close()
    return sum(re.fullmatch(r"s\d+", name) is not None for name in names), len(set(re.findall(r'"(s\d+)"', text)))
