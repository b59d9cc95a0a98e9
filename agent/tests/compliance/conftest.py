"""One process of the sample agent for all checks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.tests.blackbox.process import AgentProcess, running

SAMPLE = "agent.tests.compliance.sample"


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with running(tmp_path_factory.mktemp("sample"), {}, SAMPLE) as started:
        yield started
