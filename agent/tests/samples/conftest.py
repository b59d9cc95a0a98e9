"""Runs samples as their READMEs say."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from agent.tests.conftest import wait_until_ready
from agent.tests.model import model

__all__ = ["model"]

SAMPLES = Path(__file__).resolve().parents[3] / "samples"


@dataclass(frozen=True)
class RunningSample:
    """A sample in a process of its own, and the official client to talk to it."""

    address: str
    client: OpenAI

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def say(self, given: str, **fields: str) -> str:
        return self.client.responses.create(model="sample", input=given, **fields).output_text  # type: ignore[call-overload, no-any-return]


StartSample = Callable[..., RunningSample]


@pytest.fixture
def start_sample(tmp_path: Path) -> Iterator[StartSample]:
    """Starts `python main.py` in a sample's folder, with a home of its own, and waits until it is ready."""
    with ExitStack() as stack:

        def start(name: str, **variables: str) -> RunningSample:
            with closing(socket.socket()) as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            environ = {**os.environ, "HOME": str(tmp_path), "PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"}
            process = subprocess.Popen(
                [sys.executable, "main.py"],
                cwd=SAMPLES / name,
                env={**environ, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            wait_until_ready(process, port, attempts=6000)  # some import a whole framework first
            address = f"127.0.0.1:{port}"
            client = stack.enter_context(OpenAI(base_url=f"http://{address}", api_key="none", max_retries=0))
            return RunningSample(address, client)

        yield start
