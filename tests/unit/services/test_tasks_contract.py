"""The protocol library's contract of task stores, held against the platform's own routes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cupola_agent.tasks.base import TaskStore
from cupola_agent.tasks.platform import PlatformTaskStore

from agent.tests.tasks import test_contract
from agent.tests.tasks.test_contract import Clock
from tests.unit.services.platform import Services


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(services: Services, clock: Clock) -> AsyncIterator[TaskStore]:
    services.application.clock.time = clock
    store = PlatformTaskStore(services.client())
    yield store
    await store.close()


globals().update({name: test for name, test in vars(test_contract).items() if name.startswith("test_")})
