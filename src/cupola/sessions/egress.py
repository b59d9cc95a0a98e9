"""The egress policy of each project: the one it was given, else that of the installation."""

from __future__ import annotations

import time
from collections.abc import Callable

from cupola.domain.egress import EgressPolicy
from cupola.storage import egress
from cupola.storage.database import Database


class EgressPolicies:
    """The policies of all projects. `default` is that of projects which were given none."""

    def __init__(self, database: Database, default: EgressPolicy, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._default = default
        self._clock = clock

    async def policy(self, project: str) -> EgressPolicy:
        """What a sandbox of a project that starts now may reach."""
        found = await self._database.read(lambda connection: egress.find_egress(connection, project))
        return self._default if found is None else found

    async def change(self, project: str, policy: EgressPolicy) -> None:
        """Give a project a policy; sandboxes that there are keep the one they were started with."""
        now = int(self._clock())
        await self._database.write(lambda connection: egress.set_egress(connection, project, policy, now))
