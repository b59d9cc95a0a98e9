"""Runs an agent under test as a process of its own, with nothing in its environment that a test did not put there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from agent.tests.blackbox.wire import Client

ROOT = Path(__file__).parents[3]
REFERENCE_PYTHON = os.environ.get("CUPOLA_BLACKBOX_REFERENCE", "")
"""The interpreter that has the reference library. Set, the suite runs against that library instead of ours."""


@dataclass
class AgentProcess:
    """An agent that serves at `port`. What it logs is in `log`."""

    port: int
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    @property
    def client(self) -> Client:
        return Client(self.port)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def refuses(self) -> bool:
        """Whether the port accepts no connection any more."""
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) != 0


def command(module: str = "") -> list[str]:
    """What starts the agent under test, or another agent of ours."""
    if module:
        return [sys.executable, "-m", "cupola_agent", "run", f"{module}:agent"]
    if REFERENCE_PYTHON:
        return [REFERENCE_PYTHON, "-m", "agent.tests.blackbox.agents.reference"]
    return [sys.executable, "-m", "cupola_agent", "run", "agent.tests.blackbox.agents.ours:agent"]


@contextlib.contextmanager
def running(home: Path, variables: Mapping[str, str], module: str = "") -> Iterator[AgentProcess]:
    """Starts an agent that keeps its state below `home`; ready when this is entered, gone when it is left."""
    home.mkdir(exist_ok=True)
    port = free_port()
    log = home / "log"
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "PORT": str(port), **variables}
    with log.open("ab") as output:
        process = subprocess.Popen(command(module), cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        agent = AgentProcess(port, log, process)
        wait_until_ready(agent)
        yield agent
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(agent: AgentProcess) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert agent.process.poll() is None, agent.log.read_text()
        with contextlib.suppress(ConnectionError):
            if agent.client.get("/readiness").status == 200:
                return
        time.sleep(0.01)
    raise AssertionError(f"not ready: {agent.log.read_text()}")
