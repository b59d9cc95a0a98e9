"""Which driver makes the sandboxes of this machine, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cupola.domain.errors import CupolaError
from cupola.host.checks import Check, docker_checks, missing, oci_checks
from cupola.host.machine import Machine, ask_engine


@dataclass(frozen=True)
class Choice:
    """A driver's name, and the reason for it in words for whoever runs the server."""

    driver: str
    reason: str


def driver_checks(machine: Machine, oci_runtime: str, docker_socket: Path) -> Iterator[tuple[str, list[Check]]]:
    """What each driver needs, the one to be preferred first. The engine is asked only when its turn has come."""
    yield "oci", oci_checks(machine, oci_runtime)
    yield "docker", docker_checks(machine, ask_engine(docker_socket))


def choose(checks: Iterable[tuple[str, list[Check]]]) -> Choice:
    """The first driver that lacks nothing. Raises CupolaError `driver` that names what each one lacks, with the fix."""
    lacking: list[str] = []
    fixes: dict[str, None] = {}
    for driver, of_driver in checks:
        lacks = missing(of_driver)
        if not lacks:
            return Choice(driver, "; ".join(lacking) or "nothing that it needs is missing")
        lacking.append(f"{driver} cannot be used ({', '.join(check.finding for check in lacks)})")
        fixes.update(dict.fromkeys(check.fix for check in lacks))
    raise CupolaError(
        "driver",
        f"Sandboxes cannot be made on this machine: {'; '.join(lacking)}. What would help: {'; '.join(fixes)}. "
        "`cupola doctor` shows everything.",
    )
