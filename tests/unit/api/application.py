"""The whole HTTP surface as an ASGI application over a `World`, and a client that calls it without a network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from joserfc.jwk import ECKey
from sqlalchemy import Connection
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Scope

from cupola.api.agents import AgentsApi
from cupola.api.egress import EgressApi
from cupola.api.files import FilesApi
from cupola.api.http import Errors, RequestIds
from cupola.api.logs import LogsApi
from cupola.api.metrics import MetricsApi
from cupola.api.projects import Project
from cupola.api.session_lookup import SessionLookup
from cupola.api.sessions import SessionsApi
from cupola.api.state_stores import StateStoresApi
from cupola.api.stored_responses import StoredResponsesApi
from cupola.api.tasks import TasksApi
from cupola.api.tokens import TokensApi
from cupola.domain.principal import Principal, SandboxPrincipal
from cupola.gateway.invoke import Gateway
from cupola.identity.authentication import Authentication
from cupola.identity.call_ids import CallIds
from cupola.identity.sandbox_secrets import SandboxSecrets
from cupola.identity.seal import Seal
from cupola.identity.tokens import AUDIENCE, Tokens
from cupola.storage import principals
from tests.unit.sessions.world import ADA, TENANT, World

MIB = 1024 * 1024
KEY = ECKey.generate_key("P-256", private=True, auto_kid=True)
DEADLINE = 20.0


class Answer:
    """An answer whose body was read to its end."""

    def __init__(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.status = status
        self.headers = {name.decode(): value.decode() for name, value in headers}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        """Status and code; the shape that every client reads is checked on the way."""
        found = self.json["error"]
        assert set(found) == {"code", "message", "type", "param", "details", "additionalInfo"}
        assert found["additionalInfo"] == {"request_id": self.headers["x-request-id"]}
        return self.status, found["code"]

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


class Exchange:
    """A request under way: the server's two ends of it are queues."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._received: asyncio.Queue[Message] = asyncio.Queue()
        self._sent: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.ensure_future(self._run(app, scope))

    async def _run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._received.get, self._sent.put)
        finally:
            self._sent.put_nowait({"type": "end"})

    def send(self, body: bytes, *, more: bool = False) -> None:
        """Send a part of the request's body."""
        self._received.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def leave(self) -> None:
        """Close the connection."""
        self._received.put_nowait({"type": "http.disconnect"})

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        message = await asyncio.wait_for(self._sent.get(), DEADLINE)
        if message["type"] == "end":
            await self.task
        assert message["type"] == "http.response.start"
        return message["status"], list(message["headers"])

    async def chunk(self) -> bytes | None:
        """The next part of the answer's body; None after the last. Raises what the application raised."""
        while True:
            message = await asyncio.wait_for(self._sent.get(), DEADLINE)
            if message["type"] == "end":
                await self.task
                return None
            assert message["type"] == "http.response.body"
            if message.get("body"):
                return bytes(message["body"])

    async def answer_is_over(self) -> None:
        """The application has nothing more to say."""
        while await self.chunk() is not None:
            pass

    async def answer(self) -> Answer:
        status, headers = await self.head()
        parts = []
        while (part := await self.chunk()) is not None:
            parts.append(part)
        return Answer(status, headers, b"".join(parts))


class Caller:
    """A client of the application with a token of `principal`'s."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]

    def open(self, method: str, path: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> Exchange:
        """A request whose body is sent by the test."""
        path, _, query = path.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"localhost"), *self._headers, *headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        return Exchange(self._app, scope)

    async def call(
        self, method: str, path: str, body: object = b"", headers: Iterable[tuple[bytes, bytes]] = ()
    ) -> Answer:
        """A whole request; a body that is no bytes is sent as JSON."""
        exchange = self.open(method, path, headers)
        exchange.send(body if isinstance(body, bytes) else json.dumps(body).encode())
        return await exchange.answer()


class Clock:
    """What the time is for what agents keep with the platform: now, unless a test says otherwise."""

    def __init__(self) -> None:
        self.time: Callable[[], datetime] = lambda: datetime.now(UTC)

    def seconds(self) -> float:
        return self.time().timestamp()


class Application:
    """The server's routes; `project` is the path of its default project."""

    project = "/api/projects/default"

    def __init__(self, world: World, *, local_images: bool = True, max_body: int = 1 << 20) -> None:
        self.world = world
        self.clock = clock = Clock()
        seal = Seal(b"a key")
        self.call_ids, self.secrets = CallIds(seal), SandboxSecrets(seal)
        self.tokens = Tokens(KEY, TENANT)
        self.agents = AgentsApi(
            world.database, world.images, world.provisioner, world.manager, local_images=local_images
        )
        lookup = SessionLookup(world.database)
        routes = [
            *self.agents.routes(),
            *SessionsApi(lookup, world.database, world.manager).routes(),
            *EgressApi(world.egress, world.pool.renew).routes(),
            *FilesApi(lookup, world.volumes).routes(),
            *LogsApi(lookup, world.manager).routes(),
            *Gateway(world.database, world.manager, world.references, self.call_ids, max_body).routes(),
        ]
        services = [
            *StoredResponsesApi(world.database, self.call_ids, 32 * MIB, clock.seconds).routes(),
            *StateStoresApi(world.database, self.call_ids, clock.seconds).routes(),
            *TasksApi(world.database, 32 * MIB, lambda: clock.time()).routes(),
        ]
        project = Project(frozenset({"default", "other"}), routes, services)
        own = [*TokensApi(world.database, self.tokens, self.secrets).routes(), *MetricsApi(world.manager).routes()]
        router = Router([*own, *project.routes()], redirect_slashes=False)
        self.asgi: ASGIApp = RequestIds(Errors(Authentication(router, self.tokens)))

    def caller(self, principal: Principal | SandboxPrincipal | None = ADA) -> Caller:
        token = None if principal is None else self.tokens.issue(principal, AUDIENCE).text
        return Caller(self.asgi, token)

    async def add_principal(self, name: str, secret_hash: bytes) -> Principal:
        def write(connection: Connection) -> Principal:
            return principals.create_principal(connection, name, secret_hash, administrator=False, now=1)

        return await self.world.database.write(write)
