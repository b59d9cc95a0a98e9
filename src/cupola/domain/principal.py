"""Who calls."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Principal:
    """A person or program that the platform knows."""

    id: str
    name: str
    administrator: bool
