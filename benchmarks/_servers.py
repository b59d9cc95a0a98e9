"""Servers as processes of their own: started in a clean environment, measured from outside, killed at the end."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks._load import DEADLINE, Broken, ready

ROOT = Path(__file__).parent.parent
_PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Server:
    """A running server. `ready_after` is the seconds from its start until it answered a probe."""

    name: str
    port: int
    ready_after: float
    process: subprocess.Popen[bytes] = field(repr=False)
    log: Path = field(repr=False)

    def cpu_seconds(self) -> float:
        """The processor time that all its threads have used until now."""
        # What clock_getcpuclockid(3) makes of a process id.
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def megabytes(self) -> float:
        """Resident memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * _PAGE / 1e6

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What goes wrong inside is this server's doing: ends the benchmark with what it received and the log's end."""
        try:
            yield
        except (Broken, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
            state = "runs" if self.process.returncode is None else f"has ended with status {self.process.returncode}"
            raise SystemExit(_blame(self.name, f"{error}; the server {state}", self.log)) from error


@contextmanager
def served(name: str, command: Sequence[str], folder: Path) -> Iterator[Server]:
    """A server that keeps its state and its log below a folder; ready when this is entered, gone when it is left."""
    folder.mkdir(exist_ok=True)
    log = folder / "log"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PORT": str(port)}
    with log.open("wb") as output:
        began = time.perf_counter()
        # A session of its own: Ctrl-C is for the benchmark, which then kills it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        while not ready(port):
            if process.poll() is not None:
                raise SystemExit(_blame(name, f"ended with status {process.returncode}", log))
            if time.perf_counter() - began > DEADLINE:
                raise SystemExit(_blame(name, f"not ready within {DEADLINE:g} s", log))
            time.sleep(0.001)
        yield Server(name, port, time.perf_counter() - began, process, log)
    finally:
        process.kill()
        process.wait()


def _blame(name: str, problem: object, log: Path) -> str:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
    return f"{name}: {problem}\nthe end of its log:\n{tail}"
