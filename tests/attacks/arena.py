"""Where attempts are made: a driver, canaries on the host, and sandboxes with all walls or without some."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cupola.sandbox.base import MIB, SandboxSpec
from cupola.sandbox.oci import driver as oci
from cupola.sandbox.oci import linux, runtime_config
from cupola.sandbox.oci.driver import OciDriver
from tests.attacks.attempts.files import LAYER_CHANGES
from tests.attacks.attempts.registry import Wall
from tests.attacks.weakened import HostPlaces, weaken

ATTACKS = Path(__file__).parent
PATIENCE = 120
OPEN_FILES, PROCESSES = 4096, 128
"""Limits well below those of hosts, so that their absence shows, and soon."""


class Arena:
    """Runs attempts in sandboxes. `folder` is empty, on a disk."""

    def __init__(self, folder: Path, base: Path, canaries: dict[str, str]) -> None:
        self._folder = folder
        self._canaries = canaries
        self.places = HostPlaces(folder / "secrets", folder / "sessions", folder / "layer" / "layer")
        self._layers = (base, folder / "programs", folder / "layer")
        self._number = 0
        other = self.places.sessions / "of-another" / "home" / "file"
        other.parent.mkdir(parents=True)
        other.write_text("another's")
        self.places.secrets.mkdir()
        secret = self.places.secrets / f"secret-{os.getpid()}"
        secret.write_text("host secret")
        canaries.update(secret=str(secret), other=str(other))
        programs = folder / "programs" / "attacks" / "tests" / "attacks" / "attempts"
        shutil.copytree(ATTACKS / "attempts", programs, ignore=shutil.ignore_patterns("__pycache__"))
        self.restore_layer()
        python = self.places.layer / "python"
        shutil.copy((base / "usr/bin/python3").resolve(), python)
        python.chmod(0o4755)

    def restore_layer(self) -> None:
        """Have the layer's files as they were."""
        for name in LAYER_CHANGES:
            directory = self.places.layer / name
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            (directory / "file").write_text(f"{name}: as it was\n")

    def layer_file(self, name: str) -> object:
        """All that can be changed of a file of the layer; None when it is gone."""
        file = self.places.layer / name / "file"
        if not file.exists():
            return None
        found = file.stat()
        content = file.read_bytes() if file.is_file() else b""
        attributes = [(key, os.getxattr(file, key)) for key in os.listxattr(file)]
        return (found.st_mode, found.st_uid, found.st_ino, found.st_mtime_ns, content, attributes)

    async def run(self, names: Iterable[str], without: frozenset[Wall] = frozenset()) -> dict[str, str]:
        """The verdict of each attempt, in one sandbox that has some walls less."""
        driver = OciDriver(f"attack{os.getpid()}n{self._number}", self._folder / "run", self._folder / "data")
        self._number += 1
        with _weakened(without, self.places):
            await driver.open()
            try:
                return await self._run(driver, list(names))
            finally:
                for name in await driver.names():
                    await driver.stop(name, 0)
                await driver.close()

    async def _run(self, driver: OciDriver, names: list[str]) -> dict[str, str]:
        session = self._folder / "sessions" / f"own-{self._number}"
        spec = SandboxSpec(
            name="attacker", layers=self._layers, user="", working_directory="/", cpu=1.0, memory=192 * MIB,
            arguments=("python3", "-B", "-m", "tests.attacks.attempts.run"),
            environment=(
                ("PATH", "/usr/bin:/bin"), ("PYTHONPATH", "/attacks"),
                ("ATTEMPTS", json.dumps(names)), ("HOST", json.dumps(self._canaries)),
            ),
            home=session / "home", files=session / "files",
        )  # fmt: skip
        printed: dict[str, list[bytes]] = {}
        sandbox = await driver.start(spec, lambda stream, data: printed.setdefault(stream, []).append(data))
        ended = await asyncio.wait_for(sandbox.exited, PATIENCE)
        await driver.stop(spec.name, 0)
        said = b"".join(printed.get("stdout", [])).decode()
        if ended.code != 0:
            raise AssertionError(f"the attacker {ended}: {said} {b''.join(printed.get('stderr', [])).decode()}")
        return dict(json.loads(line) for line in said.splitlines())


@contextlib.contextmanager
def _weakened(walls: frozenset[Wall], places: HostPlaces) -> Iterator[None]:
    def configured(*arguments: Any) -> dict[str, Any]:
        config = runtime_config.runtime_config(*arguments)
        weaken(config, walls, places)
        return config

    flags = {Wall.NOSUID: "MS_NOSUID", Wall.NODEV: "MS_NODEV"}
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(runtime_config, "OPEN_FILES", OPEN_FILES))
        stack.enter_context(patch.object(runtime_config, "PIDS_LIMIT", PROCESSES))
        stack.enter_context(patch.object(oci, "runtime_config", configured))
        for wall in walls & flags.keys():
            # The root's mount is made before the runtime is called.
            stack.enter_context(patch.object(linux, flags[wall], 0))
        yield


@contextlib.contextmanager
def canaries() -> Iterator[dict[str, str]]:
    """What a host has and a sandbox must not reach: a process, servers, shared memory, queues."""
    with contextlib.ExitStack() as stack:
        waits = (
            "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: None)\nprint(flush=True)\nsys.stdin.read()"
        )
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", waits, "canary-secret"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        assert process.stdout is not None
        process.stdout.readline()
        listening = stack.enter_context(socket.create_server(("0.0.0.0", 0), backlog=100))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", 0))
        threading.Thread(target=_answer, args=(datagrams,), daemon=True).start()
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0attack-{os.getpid()}")
        abstract.listen(100)
        key = stack.enter_context(_shared())
        yield {
            "canary": str(process.pid),
            "port": str(listening.getsockname()[1]),
            "datagrams": str(datagrams.getsockname()[1]),
            "abstract": f"attack-{os.getpid()}",
            "interfaces": " ".join(name for _, name in socket.if_nameindex()),
            "hostname": os.uname().nodename,
            "key": str(key),
            "queue": f"attack-{os.getpid()}",
            "open_files": str(OPEN_FILES),
            "processes": str(PROCESSES),
        }


def _answer(datagrams: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            _, asking = datagrams.recvfrom(100)
            datagrams.sendto(b"hello", asking)


@contextlib.contextmanager
def _shared() -> Iterator[int]:
    libc = ctypes.CDLL(None, use_errno=True)
    key, new = 0x41000000 | os.getpid(), 0o1000 | 0o600
    memory, semaphores, messages = libc.shmget(key, 16, new), libc.semget(key, 1, new), libc.msgget(key, new)
    queue = libc.syscall(240, f"attack-{os.getpid()}".encode(), os.O_RDWR | os.O_CREAT, 0o600, None)
    try:
        assert min(memory, semaphores, messages, queue) >= 0
        yield key
    finally:
        libc.shmctl(memory, 0, None)
        libc.semctl(semaphores, 0, 0)
        libc.msgctl(messages, 0, None)
        libc.syscall(241, f"attack-{os.getpid()}".encode())
        os.close(queue)
