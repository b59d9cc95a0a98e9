"""Say what this machine has and lacks for running agents."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cupola.host.checks import Check, missing, optional_checks
from cupola.host.choice import choose, driver_checks
from cupola.host.machine import look
from cupola.installation import DataFolder, ServerState
from cupola.settings import Settings, load

LEAST_FREE = 1024**3
"""Bytes below which the data folder is said to have too little room: less than a few images take."""


def doctor(
    *, as_json: Annotated[bool, Parameter(name="--json", negative=())] = False, data: Path | None = None
) -> None:
    """Check what this machine has and lacks for running agents.

    Parameters
    ----------
    as_json
        Print JSON for programs.
    data
        Folder for everything that is kept.
    """
    settings, _ = load({"data": data})
    machine = look(settings.oci_runtime)
    drivers = dict(driver_checks(machine, settings.oci_runtime, settings.docker_socket))
    groups = {
        **{f"driver {name}": checks for name, checks in drivers.items()},
        "installation": _installation(settings),
        "optional": optional_checks(machine),
    }
    driver, said = conclusion(settings.driver, drivers)
    if as_json:
        listed = [{"group": group, **asdict(check)} for group, checks in groups.items() for check in checks]
        json.dump({"driver": driver, "conclusion": said, "checks": listed}, sys.stdout)
        print()
    else:
        print("\n\n".join(f"{group}\n{table(checks)}" for group, checks in groups.items()))
        print(f"\n{said}")
    if all(missing(checks) for checks in drivers.values()):
        sys.exit(1)


def conclusion(wanted: str, drivers: Mapping[str, list[Check]]) -> tuple[str | None, str]:
    """The driver that `cupola up` takes when the setting is `wanted`, if that works, and a sentence about it."""
    usable = [name for name, checks in drivers.items() if not missing(checks)]
    if not usable:
        return None, "No driver can make sandboxes here."
    if wanted == "auto":
        choice = choose(drivers.items())
        return choice.driver, f"`cupola up` takes the {choice.driver} driver: {choice.reason}."
    if wanted in usable:
        return wanted, f"`cupola up` takes the {wanted} driver: the setting driver asks for it."
    return None, f"The setting driver asks for {wanted}, which cannot be used here; {', '.join(usable)} can."


def table(checks: Iterable[Check]) -> str:
    """A line for each check, and below it how to mend what is not there."""
    lines = []
    for check in checks:
        lines.append(f"  {check.verdict:<8}  {check.name:<24}  {check.finding}")
        if check.fix:
            lines.append(f"  {'':<8}  {'':<24}  -> {check.fix}")
    return "\n".join(lines)


def _installation(settings: Settings) -> list[Check]:
    folder = DataFolder(settings.data)
    existing = next(path for path in (settings.data, *settings.data.parents) if _is_there(path))
    writable = os.access(existing, os.W_OK | os.X_OK)
    server = folder.running_server() if writable else None
    return [
        folder_check(settings.data, writable, shutil.disk_usage(existing).free),
        *(
            port_check(name, port, is_free(port), server)
            for name, port in (("https", settings.https_port), ("http", settings.http_port))
        ),
        certificate_check(_certificate_end(folder.certificates / "server.pem"), datetime.datetime.now(datetime.UTC)),
    ]


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except OSError:
        return False
    return True


def folder_check(path: Path, writable: bool, free: int) -> Check:
    """Whether the data folder, or where it will be, can be used. `free` is in bytes."""
    if not writable:
        return Check("data folder", "missing", f"this user may not write to {path}", "become its owner, or set `data`")
    finding = f"{path}, {free / 1024**3:.1f} GiB free"
    if free < LEAST_FREE:
        return Check("data folder", "missing", finding, "free some space, or choose another disk by the setting data")
    return Check("data folder", "ok", finding)


def port_check(name: str, port: int, free: bool, server: ServerState | None) -> Check:
    """Whether a port of the settings can be used. `server` is the one that runs on the data folder."""
    what = f"{name} port"
    if server is not None:
        used = server.https_port if name == "https" else server.http_port
        return Check(what, "ok", f"{used}, of the running server (process {server.pid})")
    if port == 0:
        return Check(what, "ok", "any free one")
    if free:
        return Check(what, "ok", f"{port} is free")
    return Check(what, "missing", f"{port} is taken, or may not be used", f"--{name}-port or the setting {name}_port")


def is_free(port: int) -> bool:
    """Whether something could listen on a port of 127.0.0.1."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def certificate_check(ends: datetime.datetime | None, now: datetime.datetime) -> Check:
    """Whether the server's certificate is valid; `ends` is None when there is none."""
    if ends is None:
        return Check("certificate", "optional", "none yet", "the first `cupola up` makes one")
    if ends < now:
        return Check("certificate", "missing", f"expired on {ends:%Y-%m-%d}", "start the server again: it renews it")
    return Check("certificate", "ok", f"valid until {ends:%Y-%m-%d}")


def _certificate_end(path: Path) -> datetime.datetime | None:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        return None
