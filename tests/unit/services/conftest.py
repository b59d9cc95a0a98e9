from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.api.application import Application
from tests.unit.services.platform import Services, running_services


@pytest.fixture
async def services(application: Application) -> AsyncIterator[Services]:
    async with running_services(application) as services:
        yield services
