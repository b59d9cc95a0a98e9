import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class RunningAgent:
    """An agent in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


StartAgent = Callable[..., RunningAgent]


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Agents keep their state below the home directory: not in that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture
def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def start_agent(tmp_path: Path, free_port: int) -> Iterator[StartAgent]:
    """Starts `python -m cupola_agent run main:agent` on a source text and waits for /readiness."""
    started: list[subprocess.Popen[str]] = []

    def start(source: str, *, ready: bool = True, **variables: str) -> RunningAgent:
        (tmp_path / "main.py").write_text(source)
        port = variables.setdefault("PORT", str(free_port))
        process = subprocess.Popen(
            [sys.executable, "-m", "cupola_agent", "run", "main:agent"],
            cwd=tmp_path,
            env={**os.environ, "HOME": str(tmp_path), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        if ready:
            wait_until_ready(process, int(port))
        return RunningAgent(process, int(port) if port.isdecimal() else 0)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until_ready(process: subprocess.Popen[str], port: int, attempts: int = 1000) -> None:
    for _ in range(attempts):
        assert process.poll() is None, process.communicate()[1]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readiness", timeout=1):
                return
        except OSError:
            time.sleep(0.01)
    raise AssertionError("the agent did not become ready")
