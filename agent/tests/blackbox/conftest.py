"""One agent process for all cases; tests with an environment of their own start more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.process import AgentProcess, running
from agent.tests.blackbox.wire import Client


class Start(Protocol):
    """Starts an agent with variables of its own; the same `home` again finds what was stored."""

    def __call__(self, home: str = ..., **variables: str) -> AgentProcess: ...


@pytest.fixture(scope="session")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    listening = Control(tmp_path_factory.mktemp("control") / "socket")
    yield listening
    listening.close()


@pytest.fixture(scope="session")
def agent(control: Control, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """The agent under test, outside any platform."""
    home = tmp_path_factory.mktemp("agent")
    with running(home, {"CONTROL_SOCKET": str(control.path)}) as started:
        yield started
        assert started.process.poll() is None, started.log.read_text()


@pytest.fixture
def client(agent: AgentProcess) -> Client:
    return agent.client


@pytest.fixture
def start(control: Control, tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(home: str = "home", **variables: str) -> AgentProcess:
            given: Mapping[str, str] = {"CONTROL_SOCKET": str(control.path), **variables}
            return stack.enter_context(running(tmp_path / home, given))

        yield begin
