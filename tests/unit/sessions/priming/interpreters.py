"""Runs programs by an interpreter of this machine: cold, recorded, and primed."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from cupola.sessions.priming.client import Primed, PrimingChannel, primer_arguments
from cupola.sessions.priming.entry_point import EntryPoint, _parse
from cupola.sessions.priming.plan import Plan, Recording

OURS = sys.executable
VERSIONS = ("3.8", "3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


@cache
def version_of(interpreter: str) -> tuple[int, ...]:
    """The first two numbers of its version."""
    command = [interpreter, "-ISc", "import sys; print(*sys.version_info[:2])"]
    return tuple(map(int, subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()))


@cache
def _installed() -> dict[tuple[int, ...], str]:
    """The interpreter that runs the tests, the system's, and whichever others a version manager has installed."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [OURS, "/usr/bin/python3", *sorted(map(str, versions.glob("3.*/bin/python3")))]
    found: dict[tuple[int, ...], str] = {}
    for path in candidates:
        if Path(path).exists():
            found.setdefault(version_of(path), path)
    return found


def interpreter_of(version: str) -> str:
    """An interpreter of this machine; the test is skipped where there is none of that version."""
    found = _installed().get(tuple(map(int, version.split("."))))
    if found is None:
        pytest.skip(f"this machine has no Python {version}")
    return found


OTHERS = tuple(version for version in VERSIONS if version != f"{sys.version_info[0]}.{sys.version_info[1]}")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    stderr: str
    cold: str | None = None


def entry_point(*command: str) -> EntryPoint:
    return _parse(command)


async def run_cold(entry: EntryPoint, environment: Mapping[str, str], directory: Path) -> Result:
    process = await asyncio.create_subprocess_exec(
        *entry.command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, executable=shutil.which(entry.interpreter, path=environment["PATH"]),
    )  # fmt: skip
    stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Result(process.returncode, stdout.decode(), stderr.decode())


async def waiting(
    entry: EntryPoint, environment: Mapping[str, str], directory: Path
) -> tuple[asyncio.subprocess.Process, PrimingChannel]:
    """An interpreter that waits to be told what to do."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *primer_arguments(entry), stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=directory,
            env=environment, executable=shutil.which(entry.interpreter, path=environment["PATH"]),
        )  # fmt: skip
    return process, PrimingChannel(ours)


async def record(
    entry: EntryPoint, environment: Mapping[str, str], directory: Path, *, variables: Iterable[str] = ("SESSION",),
    directories: Iterable[str] = (),
) -> tuple[Result, Recording]:  # fmt: skip
    process, channel = await waiting(entry, environment, directory)
    await channel.record(entry, variables, directories)
    stdout, stderr = await process.communicate()
    return Result(process.returncode or 0, stdout.decode(), stderr.decode()), channel.recorded()


async def run_primed(
    entry: EntryPoint, plan: Plan, environment: Mapping[str, str], directory: Path, *,
    known: Mapping[str, str] | None = None, before_run: Callable[[], None] | None = None,
) -> tuple[Result, Primed]:  # fmt: skip
    known = known or {name: value for name, value in environment.items() if name not in plan.variables}
    process, channel = await waiting(entry, known, directory)
    try:
        primed = await channel.prime(entry, plan, known)
        if before_run is not None:
            before_run()
        running = await channel.run(environment)
    except BaseException:
        channel.close()
        await process.communicate()
        raise
    stdout, stderr = await process.communicate()
    assert process.returncode is not None
    return Result(process.returncode, stdout.decode(), stderr.decode(), running.cold), primed
