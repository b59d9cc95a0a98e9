"""The protocol library's contract of response stores, held against the platform's own routes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from cupola_agent.stores.base import ResponseStore
from cupola_agent.stores.platform import PlatformResponseStore

from agent.tests.stores import test_contract
from tests.unit.services.platform import Services


@pytest.fixture
async def store(services: Services) -> AsyncIterator[ResponseStore]:
    store = PlatformResponseStore(services.client())
    yield store
    await store.close()


globals().update({name: test for name, test in vars(test_contract).items() if name.startswith("test_")})
