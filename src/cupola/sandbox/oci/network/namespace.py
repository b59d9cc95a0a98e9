"""Network namespaces: made and entered by one thread, kept alive by a descriptor, gone when nothing holds them any more."""

from __future__ import annotations

import contextlib
import os
import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from cupola.sandbox.oci import linux

LOOPBACK = 1
"""The index of every namespace's loopback interface."""


def current_namespace() -> int:
    """A descriptor of the calling thread's network namespace."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def make_namespace() -> int:
    """Move the calling thread into a new network namespace; returns its descriptor."""
    linux.unshare(linux.CLONE_NEWNET)
    return current_namespace()


def enter(namespace: int) -> None:
    """Move the calling thread into a network namespace."""
    linux.setns(namespace, linux.CLONE_NEWNET)


def set_option(path: str, value: str) -> None:
    """Set `/proc/sys/net/{path}` of the calling thread's namespace. Raises OSError."""
    Path("/proc/sys/net", path).write_text(value)


def get_option(path: str) -> str:
    """Read `/proc/sys/net/{path}` of the calling thread's namespace. Raises OSError."""
    return Path("/proc/sys/net", path).read_text().strip()


def disable_ipv6(interface: str) -> None:
    """Let an interface of the calling thread's namespace have no IPv6; `default` is for those to come."""
    # A kernel without IPv6 has no such file.
    with contextlib.suppress(FileNotFoundError):
        set_option(f"ipv6/conf/{interface}/disable_ipv6", "1")


def read_routes() -> tuple[tuple[str, IPv4Network], ...]:
    """Interface and destination of each IPv4 route of the calling thread's namespace."""
    lines = Path("/proc/thread-self/net/route").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return tuple((row[0], IPv4Network((_address(row[1]), str(_address(row[7]))))) for row in rows)


def _address(text: str) -> IPv4Address:
    return IPv4Address(bytes.fromhex(text)[::-1])


def is_plain_name(interface: str) -> bool:
    """Whether an interface's name can be written into a rule or a path as it is."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,14}", interface) is not None
