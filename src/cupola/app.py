"""The composition root: the only place that knows every part. It builds them, runs them, and takes them down in order."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import uvicorn
import uvloop
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from cupola.api.agents import AgentsApi
from cupola.api.http import Errors, RequestIds
from cupola.api.logs import LogsApi
from cupola.api.projects import DEFAULT_PROJECT, Project
from cupola.api.tokens import TokensApi
from cupola.domain.errors import CupolaError, not_found
from cupola.gateway.invoke import Gateway
from cupola.identity.authentication import Authentication
from cupola.identity.certificates import Certificates, ensure_certificates
from cupola.identity.secret import hash_secret, new_secret, write_private
from cupola.identity.tokens import Tokens, load_or_create_key
from cupola.images.store import ImageStore
from cupola.installation import DataFolder, ServerState
from cupola.sandbox.base import SandboxError
from cupola.sandbox.oci.driver import (
    LOCK_NAME,
    OciDriver,
    enter_private_mount_namespace,
    sweep_dead_installations,
)
from cupola.sessions.launcher import Installation, Launcher
from cupola.sessions.manager import SessionManager
from cupola.sessions.provisioner import Provisioner
from cupola.settings import Settings
from cupola.storage import principals
from cupola.storage.database import Database, open_engine
from cupola.storage.migrate import migrate

logger = logging.getLogger(__name__)

RUN_ROOT = Path("/run/cupola")
SYSTEM_ROOTS = Path("/etc/ssl/certs/ca-certificates.crt")
PRIORITY = -10
DRAIN_DEADLINE = 10
"""Seconds that requests under way may take to finish after a stop was asked for."""


def run(settings: Settings, on_ready: Callable[[ServerState], None]) -> None:
    """Serve until SIGINT or SIGTERM; a second signal kills sandboxes at once. Raises CupolaError when it cannot start."""
    folder = DataFolder(settings.data)
    tenant = folder.create()
    try:
        enter_private_mount_namespace()
    except OSError as error:
        raise CupolaError(
            "no_privilege",
            f"Sandboxes need mounts of their own, and the system refuses them ({error}). Run this as root, with "
            "CAP_SYS_ADMIN and outside of a chroot.",
        ) from error
    _take_precedence()
    with folder.lock(), _run_directory(_short(tenant)) as run_directory:
        uvloop.run(_Server(settings, folder, tenant, run_directory).serve(on_ready))


def _take_precedence() -> None:
    """Go before sandboxes when there is not enough processor time. What is started from here has ordinary priority."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)


def _short(tenant: str) -> str:
    return tenant.replace("-", "")[:12]


@contextlib.contextmanager
def _run_directory(name: str) -> Iterator[Path]:
    """This installation's run directory, locked; sweeps what servers that died without a clean-up left."""
    RUN_ROOT.mkdir(parents=True, exist_ok=True, mode=0o700)
    directory = RUN_ROOT / name
    with (RUN_ROOT / ".sweep").open("a") as sweeping:
        fcntl.flock(sweeping, fcntl.LOCK_EX)
        sweep_dead_installations(RUN_ROOT)
        directory.mkdir(mode=0o700, exist_ok=True)
        lock = (directory / LOCK_NAME).open("a")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock:
        try:
            yield directory
        finally:
            # What is left in it after a clean stop is empty; after a failed one the next start needs it.
            for part in (*directory.iterdir(), directory):
                with contextlib.suppress(OSError):
                    part.rmdir() if part.is_dir() else part.unlink()


class _Server:
    def __init__(self, settings: Settings, folder: DataFolder, tenant: str, run_directory: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._tenant = tenant
        self._run_directory = run_directory

    async def serve(self, on_ready: Callable[[ServerState], None]) -> None:
        settings = self._settings
        with contextlib.ExitStack() as sockets:
            https = sockets.enter_context(_listen("localhost", settings.https_port, "https"))
            http = sockets.enter_context(_listen("127.0.0.1", settings.http_port, "http"))
            state = ServerState(os.getpid(), https.getsockname()[1], http.getsockname()[1])
            database = await asyncio.to_thread(self._open_database)
            images = ImageStore(
                self._folder.images,
                mirrors=settings.registry_mirrors,
                insecure_registries=settings.insecure_registries,
                docker_socket=settings.docker_socket,
            )
            driver = OciDriver(
                _short(self._tenant),
                self._run_directory,
                self._folder.sandboxes,
                settings.oci_runtime or None,
                session_disk=settings.session_disk,
                disk_reserve=settings.disk_reserve,
            )
            try:
                await driver.open()
            except SandboxError as error:
                raise CupolaError("driver", f"Sandboxes cannot be made on this machine: {error}.") from error
            try:
                for name in await driver.names():
                    await driver.stop(name, 0)
                await self._serve(state, (https, http), database, images, driver, on_ready)
            finally:
                await driver.close()
                await images.close()
                database.close()

    def _certificates(self) -> Certificates:
        # The machine's own list may hold an organisation's authority, which certifi's does not.
        public_roots = SYSTEM_ROOTS if SYSTEM_ROOTS.exists() else None
        return ensure_certificates(self._folder.certificates, datetime.datetime.now(datetime.UTC), public_roots)

    def _open_database(self) -> Database:
        self._folder.database.touch(mode=0o600)
        engine = open_engine(self._folder.database)
        migrate(engine)
        now = int(time.time())
        with engine.begin() as connection:
            if principals.principal_by_name(connection, "administrator") is None:
                secret = new_secret()
                write_private(self._folder.administrator_secret, secret)
                principals.create_principal(connection, "administrator", hash_secret(secret), True, now)
            if DEFAULT_PROJECT not in principals.project_names(connection):
                principals.create_project(connection, DEFAULT_PROJECT, now)
        return Database(engine)

    async def _serve(
        self,
        state: ServerState,
        sockets: tuple[socket.socket, socket.socket],
        database: Database,
        images: ImageStore,
        driver: OciDriver,
        on_ready: Callable[[ServerState], None],
    ) -> None:
        settings = self._settings
        certificates = await asyncio.to_thread(self._certificates)
        tokens = Tokens(load_or_create_key(self._folder.signing_key), self._tenant)
        launcher = Launcher(
            driver,
            Installation(
                tenant=self._tenant,
                project_endpoint=lambda project: f"{state.https_url}/api/projects/{project}",
                startup_timeout=settings.startup_timeout,
                stop_grace=settings.stop_grace,
            ),
        )
        manager = SessionManager(database, images, launcher, self._folder.sessions)
        provisioner = Provisioner(
            database, images, launcher, self._folder.path / "trials", settings.provisioning_concurrency
        )
        agents_api = AgentsApi(database, images, provisioner, manager, local_images=settings.local_images)
        gateway = Gateway(database, manager, settings.max_request_body)
        projects = await database.read(principals.project_names)
        project = Project(projects, [*agents_api.routes(), *LogsApi(database, manager).routes(), *gateway.routes()])
        app = _application(project, TokensApi(database, tokens), tokens)
        servers = (_listener(app, certificates), _listener(app, None))

        stopping = asyncio.Event()
        sandboxes_stopping = asyncio.Event()
        _on_signals(stopping, driver)
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run(sandboxes_stopping), name="sessions")
            group.create_task(provisioner.run(sandboxes_stopping), name="provisioner")
            serving = [
                group.create_task(server.serve([listening]), name="listener")
                for server, listening in zip(servers, sockets, strict=True)
            ]
            await agents_api.finish_deletions()
            while not all(server.started for server in servers):
                await asyncio.sleep(0.005)
            self._folder.write_state(state)
            on_ready(state)
            await stopping.wait()
            for server in servers:
                server.should_exit = True
            await asyncio.wait(serving)
            sandboxes_stopping.set()


def _application(project: Project, tokens_api: TokensApi, tokens: Tokens) -> ASGIApp:
    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        raise not_found(f"The path {scope['path'][:256]}")

    router = Router(
        [Route("/healthz", health, methods=["GET"]), *tokens_api.routes(), project.mount()],
        default=nothing_here,
        redirect_slashes=False,
    )
    return RequestIds(Errors(Authentication(router, tokens)))


class _Listener(uvicorn.Server):
    """A uvicorn server whose signals are handled by the composition root."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listener(app: ASGIApp, certificates: Certificates | None) -> _Listener:
    return _Listener(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=DRAIN_DEADLINE,
            ssl_certfile=None if certificates is None else str(certificates.chain),
            ssl_keyfile=None if certificates is None else str(certificates.key),
        )
    )


def _listen(host: str, port: int, what: str) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port), backlog=2048)
    except OSError as error:
        raise CupolaError(
            "port_taken",
            f"Port {port} on {host} cannot be used for {what.upper()}: {os.strerror(error.errno or 0)}. Choose another with "
            f"--{what}-port or CUPOLA_{what.upper()}_PORT; 0 takes any free one.",
        ) from error


def _on_signals(stopping: asyncio.Event, driver: OciDriver) -> None:
    def stop() -> None:
        if stopping.is_set():
            driver.hurry()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
