"""Forwarding of packets that arrive on the host's uplinks: switched on where it is off, and off again by whoever did it.

Answers to a sandbox arrive on the interface of a default route, and the kernel passes them on only where that interface
forwards. Which ones an installation switched on stands in its run directory, so that it is undone even after `kill -9`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from cupola.sandbox.oci.network.namespace import get_option, is_plain_name, read_routes, set_option

RECORD = "forwarding"


def uplinks() -> frozenset[str]:
    """The interfaces of the default routes of the calling thread's namespace."""
    return frozenset(
        interface for interface, network in read_routes() if network.prefixlen == 0 and is_plain_name(interface)
    )


def all_on(interfaces: frozenset[str]) -> bool:
    """Whether all of them forward. Raises OSError."""
    return all(get_option(f"ipv4/conf/{interface}/forwarding") == "1" for interface in interfaces)


def switch_on(run: Path, interfaces: frozenset[str]) -> frozenset[str]:
    """Let interfaces forward; returns those which, but for an installation of Cupola, do not. Raises OSError."""
    ours, others = _recorded(run), _recorded_by_others(run)
    for interface in interfaces - ours:
        if interface in others or get_option(f"ipv4/conf/{interface}/forwarding") == "0":
            ours |= {interface}
    (run / RECORD).write_text("\n".join(sorted(ours)))
    for interface in interfaces & ours:
        set_option(f"ipv4/conf/{interface}/forwarding", "1")
    return ours


def switch_off(run: Path) -> None:
    """Undo `switch_on` of the installation with this run directory, where no other one of this machine relies on it."""
    ours = _recorded(run)
    (run / RECORD).unlink(missing_ok=True)
    # Somebody who made the whole machine a router meanwhile needs it as it is.
    if ours and get_option("ipv4/conf/all/forwarding") == "0":
        for interface in ours - _recorded_by_others(run):
            with contextlib.suppress(FileNotFoundError):
                set_option(f"ipv4/conf/{interface}/forwarding", "0")


def _recorded(run: Path) -> frozenset[str]:
    try:
        return frozenset((run / RECORD).read_text().split())
    except FileNotFoundError:
        return frozenset()


def _recorded_by_others(run: Path) -> frozenset[str]:
    found: frozenset[str] = frozenset()
    for other in run.parent.iterdir():
        if other != run and other.is_dir():
            found |= _recorded(other)
    return found
