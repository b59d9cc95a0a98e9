"""A Docker engine of the tests' own, in mount and network namespaces of its own: nobody else on the host notices it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from cupola.sandbox.oci.cgroup import ControlGroups, find_hierarchies

READY_DEADLINE = 30.0
STOP_DEADLINE = 40.0
# Engines keep sockets and locks below /run, whatever they are told.
IN_NAMESPACES = 'mount -t tmpfs none /run && exec "$@"'


class EngineUnavailable(Exception):
    """No engine can be started here; the message says why."""


@dataclass(frozen=True)
class PrivateEngine:
    """A running engine."""

    socket: Path
    pid: int

    def get(self, path: str, **parameters: str) -> Any:
        """The JSON of a GET of the Engine API."""
        transport = httpx2.HTTPTransport(uds=str(self.socket))
        with httpx2.Client(transport=transport, base_url="http://docker", trust_env=False) as client:
            answer = client.get(path, params=parameters)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def contents(self) -> list[str]:
        """The names of all containers, images and networks that users made."""
        containers = [container["Names"][0] for container in self.get("/containers/json", all="1")]
        images = [str(image["RepoTags"]) for image in self.get("/images/json", all="1")]
        networks = [network["Name"] for network in self.get("/networks")]
        return sorted({*containers, *images, *networks} - {"none", "host", "bridge"})


@contextmanager
def serve_engine() -> Iterator[PrivateEngine]:
    """Runs an engine for the length of the block, and proves that nothing of it is left. Raises EngineUnavailable."""
    if os.geteuid() != 0:
        raise EngineUnavailable("a Docker engine of its own needs root")
    if shutil.which("dockerd") is None:
        raise EngineUnavailable("dockerd is not installed")
    directory = Path(tempfile.mkdtemp(prefix="cupola-engine-"))
    group = directory.name
    log = directory / "log"
    command = [
        "unshare", "--mount", "--net", "--propagation", "slave", "sh", "-c", IN_NAMESPACES, "sh",
        "dockerd", "--host", f"unix://{directory}/docker.sock", "--data-root", str(directory / "data"),
        "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"), "--bridge", "none",
        "--cgroup-parent", f"/{group}", "--exec-opt", "native.cgroupdriver=cgroupfs",
        "--default-address-pool", "base=10.213.0.0/16,size=24", "--log-level", "warn",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    engine = PrivateEngine(directory / "docker.sock", process.pid)
    try:
        _wait_until_ready(engine, process, log)
        yield engine
    finally:
        _stop(process, str(directory))
        groups = ControlGroups(group, find_hierarchies())
        for name in groups.names():
            groups.remove(name)
        groups.remove_parent()
        shutil.rmtree(directory)


def _wait_until_ready(engine: PrivateEngine, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + READY_DEADLINE
    while not engine.socket.exists():
        if process.poll() is not None or time.monotonic() > end:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            raise EngineUnavailable(f"dockerd does not start here: {' '.join(last)}")
        time.sleep(0.05)
    engine.get("/version")


def _stop(process: subprocess.Popen[bytes], directory: str) -> None:
    killed = process.poll() == -signal.SIGKILL
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_DEADLINE)
        left = _processes_of(directory)
        assert killed or left == {}, left
    finally:
        process.kill()
        process.wait()
        for pid in _processes_of(directory):
            os.kill(pid, signal.SIGKILL)


def _processes_of(directory: str) -> dict[int, str]:
    """The engine and its helpers: all have a path below its directory among their arguments."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # the process has ended
                continue
            if directory in arguments:
                found[int(entry.name)] = arguments.replace("\0", " ")
    return found
