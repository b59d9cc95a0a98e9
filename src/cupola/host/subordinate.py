"""The ids that an ordinary user may give to others inside a user namespace: `/etc/subuid` and `/etc/subgid`, see subuid(5)."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

SUBUID = Path("/etc/subuid")
SUBGID = Path("/etc/subgid")
USUAL_COUNT = 65536
"""How many ids images expect to be there."""


@dataclass(frozen=True)
class Range:
    """`count` ids from `start` on."""

    start: int
    count: int


def user_name() -> str:
    """Who this process belongs to; empty when the user has no name, for which `newuidmap` does nothing."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


def largest_range(file: Path, name: str, number: int) -> Range | None:
    """The largest range that a file gives to a user, by name or number; None when there is none."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return None
    rows = [line.split(":") for line in lines]
    ranges = [
        Range(int(row[1]), int(row[2]))
        for row in rows
        if len(row) == 3 and row[0] in (name, str(number)) and row[1].isdecimal() and row[2].isdecimal()
    ]
    return max((found for found in ranges if found.count), key=lambda found: found.count, default=None)
