"""The protocol library's contract of state stores, held against the platform's own routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from cupola_agent.state import StateStore
from cupola_agent.state.base import StateBackend
from cupola_agent.state.platform import PlatformStateBackend

from agent.tests.state import test_contract
from agent.tests.state.test_contract import Clock
from tests.unit.services.platform import Services


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def backend(services: Services, clock: Clock) -> AsyncIterator[StateBackend]:
    services.application.clock.time = lambda: datetime.fromtimestamp(clock(), UTC)
    backend = PlatformStateBackend(services.client())
    yield backend
    await backend.close()


@pytest.fixture
def store(backend: StateBackend) -> StateStore:
    return StateStore("notes", backend=backend)


globals().update({name: test for name, test in vars(test_contract).items() if name.startswith("test_")})
