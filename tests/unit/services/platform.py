"""The platform's services over a real socket, and the protocol library's own clients of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from cupola_agent.call import Caller
from cupola_agent.platform.api import Platform, Reply

from cupola.domain.principal import SandboxPrincipal
from cupola.domain.version import Agent
from tests.unit.api.application import Application
from tests.unit.storage.samples import add_agent

GUID = "0123456789abcdef0123456789abcdef"


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def listening(application: Application) -> AsyncIterator[int]:
    """The port on which the application answers."""
    config = uvicorn.Config(
        application.asgi, port=0, ws="none", lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0)
        assert not serving.done()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


@dataclass
class Services:
    """A running platform with one agent. `sandbox` is one of its sessions."""

    application: Application
    port: int
    agent: Agent

    @property
    def sandbox(self) -> SandboxPrincipal:
        return SandboxPrincipal("default", self.agent.key, GUID)

    def variables(self, sandbox: SandboxPrincipal) -> dict[str, str]:
        """The environment of a sandbox that finds the platform here."""
        return {
            "FOUNDRY_PROJECT_ENDPOINT": f"http://127.0.0.1:{self.port}/api/projects/{sandbox.project}",
            "IDENTITY_ENDPOINT": f"http://127.0.0.1:{self.port}/msi/token",
            "IDENTITY_HEADER": self.application.secrets.issue(sandbox),
        }

    def client(self, sandbox: SandboxPrincipal | None = None) -> Platform:
        """The library's client in a sandbox; whoever it calls for by a name is a user of that name."""
        sandbox = sandbox or self.sandbox
        client = Platform.from_environment(self.variables(sandbox))
        call = client.call
        ids = self.application.call_ids

        async def call_for(method: str, path: str, *, caller: Caller | None = None, **rest: Any) -> Reply:
            if caller is not None and caller.user_id:
                caller = replace(caller, call_id=ids.issue(sandbox.session_guid, caller.user_id))
            return await call(method, path, caller=caller, **rest)

        client.call = call_for  # type: ignore[method-assign]
        return client


@contextlib.asynccontextmanager
async def running_services(application: Application) -> AsyncIterator[Services]:
    agent = await application.world.database.write(add_agent)
    async with listening(application) as port:
        yield Services(application, port, agent)
