"""The composition root: the only place that knows every part. It builds them, runs them, and takes them down in order."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import fcntl
import logging
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import IO

import uvicorn
import uvloop
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from cupola.api.agents import AgentsApi
from cupola.api.egress import EgressApi
from cupola.api.files import FilesApi
from cupola.api.http import Errors, RequestIds
from cupola.api.logs import LogsApi
from cupola.api.metrics import MetricsApi
from cupola.api.projects import DEFAULT_PROJECT, Project
from cupola.api.session_lookup import SessionLookup
from cupola.api.sessions import SessionsApi
from cupola.api.state_stores import StateStoresApi
from cupola.api.stored_responses import StoredResponsesApi
from cupola.api.tasks import TasksApi
from cupola.api.tokens import TokensApi
from cupola.domain.egress import NO_EGRESS, EgressMode, EgressPolicy
from cupola.domain.errors import CupolaError, not_found
from cupola.gateway.connection import BoundedConnection
from cupola.gateway.invoke import Gateway
from cupola.host.choice import Choice, choose, driver_checks
from cupola.host.machine import look
from cupola.identity.authentication import Authentication
from cupola.identity.call_ids import CallIds
from cupola.identity.certificates import Certificates, ensure_certificates
from cupola.identity.sandbox_secrets import SandboxSecrets
from cupola.identity.seal import load_or_create_seal
from cupola.identity.secret import hash_secret, new_secret, write_private
from cupola.identity.tokens import Tokens, load_or_create_key
from cupola.images.model import Images
from cupola.images.store import ImageStore
from cupola.installation import DataFolder, ServerState
from cupola.node.privileges import become, find_server_user, give
from cupola.node.process import Node, Parts, Sockets, run_apart
from cupola.node.rootless import RUN, run_rootless
from cupola.sandbox.base import Driver
from cupola.sandbox.oci.authorities import public_roots
from cupola.sandbox.oci.driver import OciDriver
from cupola.sandbox.oci.installations import LOCK_NAME, enter_private_mount_namespace, sweep_dead_installations
from cupola.sandbox.oci.linux import forbid_new_privileges
from cupola.sandbox.oci.network.network import NetworkSettings
from cupola.sandbox.oci.runtime_config import FIRST_ID
from cupola.sessions.admission import Admission, Limits
from cupola.sessions.egress import EgressPolicies
from cupola.sessions.environment import Hosting
from cupola.sessions.launcher import Installation, Launcher
from cupola.sessions.manager import Rest, SessionManager
from cupola.sessions.pool import WarmPool
from cupola.sessions.primer import Primer
from cupola.sessions.provisioner import Provisioner
from cupola.sessions.references import References
from cupola.sessions.volumes import LocalVolumes, Volumes
from cupola.settings import Settings
from cupola.storage import principals
from cupola.storage.database import Database, open_engine
from cupola.storage.migrate import migrate

logger = logging.getLogger(__name__)

RUN_ROOT = Path("/run/cupola")
PRIORITY = -10
DRAIN_DEADLINE = 10
"""Seconds that requests under way may take to finish after a stop was asked for."""


def run(
    settings: Settings, on_ready: Callable[[ServerState], None], uptime: Callable[[], float] = time.monotonic
) -> None:
    """Serve until SIGINT or SIGTERM; a second signal kills sandboxes at once. Raises CupolaError when it cannot start.

    When it is started by root, the server is a child of this process and runs as another user; this process is its node.
    `uptime` is the clock, in seconds, by which sandboxes are idle.
    """
    folder = DataFolder(settings.data)
    tenant = folder.create()
    _allow_open_files()
    choice = _choose_driver(settings)
    logger.info("sandboxes are made by the %s driver: %s", choice.driver, choice.reason)
    if settings.hosting and choice.driver != "oci":
        raise CupolaError(
            "bad_setting", f"hosting: sandboxes of the {choice.driver} driver cannot call the platform; turn it off."
        )
    user = find_server_user(settings.server_user)
    rootless = choice.driver == "oci" and os.geteuid() != 0
    if choice.driver == "oci" and not rootless:
        _refuse_layers_of_others(folder.images / "layers")
        _enter_private_mount_namespace()
    _take_precedence()
    with contextlib.ExitStack() as stack:
        locks = [stack.enter_context(folder.lock())]
        sockets = (
            stack.enter_context(_listen("localhost", settings.https_port, "https")),
            stack.enter_context(_listen("127.0.0.1", settings.http_port, "http")),
        )
        state = ServerState(os.getpid(), *(one.getsockname()[1] for one in sockets))
        if choice.driver == "docker":
            driver = _docker_driver(settings, tenant)
        elif rootless:
            driver = _oci_driver(settings, folder, tenant, state, RUN, rootless=True)
        else:
            run_directory, lock = stack.enter_context(_run_directory(_short(tenant)))
            locks.append(lock)
            driver = _oci_driver(settings, folder, tenant, state, run_directory)
        images = ImageStore(
            folder.images,
            mirrors=settings.registry_mirrors,
            insecure_registries=settings.insecure_registries,
            docker_socket=settings.docker_socket,
            first_id=FIRST_ID if rootless else 0,
        )
        parts = Parts(driver, images, {"volumes": LocalVolumes(folder.volumes), "trials": LocalVolumes(folder.trials)})
        server = _Server(settings, folder, tenant, state, sockets, on_ready, uptime)

        def serve(ends: Sockets) -> None:
            uvloop.run(_run_with_node(server, Node(ends, folder.path)))

        def prepare_rootless() -> None:
            for lock in locks:
                lock.close()
            forbid_new_privileges()

        if rootless:
            run_rootless(
                folder.path, folder.staging, folder.sandboxes, _short(tenant), parts, sockets, prepare_rootless, serve
            )
            return
        if user is None:
            give(folder.server, os.geteuid(), os.getegid())
            uvloop.run(_run_as_one(server, parts))
            return
        give(folder.server, user.uid, user.gid)
        layers = folder.images / "layers"
        layers.mkdir(parents=True, exist_ok=True)

        def prepare() -> None:
            # The node alone holds the locks: they are free as soon as it has died.
            for lock in locks:
                lock.close()
            _take_precedence()
            become(user, folder.server, [layers])

        run_apart(folder.path, parts, sockets, prepare, serve)


async def _run_as_one(server: _Server, parts: Parts) -> None:
    async with parts.opened():
        await server.serve(Host(parts.driver, parts.images, parts.volumes["volumes"], parts.volumes["trials"]))


async def _run_with_node(server: _Server, node: Node) -> None:
    running = asyncio.create_task(node.run(), name="node")
    running.add_done_callback(lambda _: server.stopping.set())
    try:
        await node.driver.open()
        await server.serve(Host(node.driver, node.images, node.volumes, node.trials))
    finally:
        node.close()
        await running


def _enter_private_mount_namespace() -> None:
    try:
        enter_private_mount_namespace()
    except OSError as error:
        raise CupolaError(
            "no_privilege",
            f"Sandboxes need mounts of their own, and the system refuses them ({error}). Run this as root, with "
            "CAP_SYS_ADMIN and outside of a chroot.",
        ) from error


def _refuse_layers_of_others(layers: Path) -> None:
    """Layers that were unpacked without root have other owners, and hide files by other attributes."""
    if layers.exists() and layers.stat().st_uid != 0:
        raise CupolaError(
            "data_folder",
            f"The images in {layers.parent} were unpacked by another user, without root. Run this as that user, or choose "
            "another data folder with --data or CUPOLA_DATA.",
        )


def _allow_open_files() -> None:
    """Have as many files open as the system lets us: one sandbox takes a dozen, and some hundred more while it holds
    connections to the platform. Many systems let a process begin with 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _choose_driver(settings: Settings) -> Choice:
    if settings.driver != "auto":
        return Choice(settings.driver, "the setting driver asks for it")
    machine = look(settings.oci_runtime)
    return choose(driver_checks(machine, settings.oci_runtime, settings.docker_socket))


def _docker_driver(settings: Settings, tenant: str) -> Driver:
    # What it needs takes long to import, and most servers do not need it.
    from cupola.sandbox.docker.driver import DockerDriver

    return DockerDriver(_short(tenant), settings.docker_socket)


def _take_precedence() -> None:
    """Go before sandboxes when there is not enough processor time. What is started from here has ordinary priority."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)


def _oci_driver(
    settings: Settings,
    folder: DataFolder,
    tenant: str,
    state: ServerState,
    run_directory: Path,
    *,
    rootless: bool = False,
) -> Driver:
    network = NetworkSettings(state.https_port, IPv4Network(settings.sandbox_network), settings.dns_servers)
    return OciDriver(
        _short(tenant),
        run_directory,
        folder.sandboxes,
        settings.oci_runtime or None,
        network,
        session_disk=settings.session_disk,
        disk_reserve=settings.disk_reserve,
        rootless=rootless,
    )


def _short(tenant: str) -> str:
    return tenant.replace("-", "")[:12]


@contextlib.contextmanager
def _run_directory(name: str) -> Iterator[tuple[Path, IO[str]]]:
    """This installation's run directory and its lock, which is held; sweeps what servers that died without a clean-up left."""
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
            yield directory, lock
        finally:
            # What a failed stop has left is for the next start of any server, which knows it by the lock.
            for part in directory.iterdir():
                with contextlib.suppress(OSError):
                    part.rmdir()
            if not any(part.is_dir() for part in directory.iterdir()):
                shutil.rmtree(directory)


@dataclass(frozen=True)
class Host:
    """What the server has of the machine: in its own process or in that of its node."""

    driver: Driver
    images: Images
    volumes: Volumes
    trials: Volumes


class _Server:
    def __init__(
        self,
        settings: Settings,
        folder: DataFolder,
        tenant: str,
        state: ServerState,
        sockets: tuple[socket.socket, socket.socket],
        on_ready: Callable[[ServerState], None],
        uptime: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._tenant = tenant
        self._state = state
        self._sockets = sockets
        self._on_ready = on_ready
        self.stopping = asyncio.Event()
        self._uptime = uptime

    async def serve(self, host: Host) -> None:
        """Serve until `stopping` is set, by a signal or else."""
        database = await asyncio.to_thread(self._open_database)
        try:
            for name in await host.driver.names():
                await host.driver.stop(name, 0)
            await self._serve(host, database)
        finally:
            database.close()

    def _certificates(self) -> Certificates:
        return ensure_certificates(self._folder.certificates, datetime.datetime.now(datetime.UTC), public_roots())

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

    async def _serve(self, host: Host, database: Database) -> None:
        settings, state = self._settings, self._state
        certificates = await asyncio.to_thread(self._certificates)
        tokens = Tokens(load_or_create_key(self._folder.signing_key), self._tenant)
        seal = load_or_create_seal(self._folder.seal_key)
        call_ids, secrets = CallIds(seal), SandboxSecrets(seal)
        egress = EgressPolicies(database, _default_egress(settings, host.driver))
        hosting = None
        if settings.hosting:
            authority = certificates.authority.read_text()
            hosting = Hosting(f"{state.https_url}/msi/token", secrets.issue, authority)
        launcher = Launcher(
            host.driver,
            Installation(
                tenant=self._tenant,
                project_endpoint=lambda project: f"{state.https_url}/api/projects/{project}",
                startup_timeout=settings.startup_timeout,
                stop_grace=settings.stop_grace,
                egress=egress.policy,
                hosting=hosting,
            ),
            Admission(
                Limits(
                    sandboxes=settings.max_sandboxes,
                    memory=settings.max_sandbox_memory,
                    queue=settings.sandbox_queue,
                    deadline=settings.sandbox_queue_timeout,
                )
            ),
        )
        primer = Primer(launcher, database)
        images, volumes = host.images, host.volumes
        pool = WarmPool(launcher, primer, images, volumes, self._folder.logs, settings.pool_size)
        rest = Rest(settings.freeze_after if host.driver.can_freeze else 0, settings.hold_limit)
        manager = SessionManager(
            database, images, launcher, primer, pool, volumes, self._folder.logs, rest, uptime=self._uptime
        )
        provisioner = Provisioner(
            database,
            images,
            launcher,
            primer,
            host.trials,
            settings.provisioning_concurrency,
            manager.version_activated,
        )
        agents_api = AgentsApi(database, images, provisioner, manager, local_images=settings.local_images)
        lookup = SessionLookup(database)
        references = References(database)
        gateway = Gateway(database, manager, references, call_ids, settings.max_request_body)
        projects = await database.read(principals.project_names)
        routes = [
            *agents_api.routes(),
            *SessionsApi(lookup, database, manager).routes(),
            *EgressApi(egress, pool.renew).routes(),
            *FilesApi(lookup, volumes).routes(),
            *LogsApi(lookup, manager).routes(),
            *gateway.routes(),
        ]
        services = [
            *StoredResponsesApi(database, call_ids, settings.max_request_body).routes(),
            *StateStoresApi(database, call_ids).routes(),
            *TasksApi(database, settings.max_request_body).routes(),
        ]
        project = Project(projects, routes, services)
        app = _application(project, TokensApi(database, tokens, secrets), MetricsApi(manager), tokens)
        servers = (_listener(app, certificates), _listener(app, None))

        sandboxes_stopping = asyncio.Event()
        _on_signals(self.stopping, host.driver)
        async with asyncio.TaskGroup() as group:
            group.create_task(manager.run(sandboxes_stopping), name="sessions")
            group.create_task(references.run(sandboxes_stopping), name="references")
            group.create_task(pool.run(sandboxes_stopping), name="warm pool")
            group.create_task(provisioner.run(sandboxes_stopping), name="provisioner")
            serving = [
                group.create_task(server.serve([listening]), name="listener")
                for server, listening in zip(servers, self._sockets, strict=True)
            ]
            await agents_api.finish_deletions()
            while not all(server.started for server in servers):
                await asyncio.sleep(0.005)
            self._folder.write_state(state)
            self._on_ready(state)
            await self.stopping.wait()
            for server in servers:
                server.should_exit = True
            await asyncio.wait(serving)
            sandboxes_stopping.set()


def _default_egress(settings: Settings, driver: Driver) -> EgressPolicy:
    """The policy of projects that were given none, which is all that this host can provide."""
    if settings.egress == EgressMode.NONE:
        return NO_EGRESS
    if driver.no_egress is not None:
        logger.warning("sandboxes can have no way out here, so the default egress policy is none: %s", driver.no_egress)
        return NO_EGRESS
    return EgressPolicy(EgressMode(settings.egress))


def _application(project: Project, tokens_api: TokensApi, metrics_api: MetricsApi, tokens: Tokens) -> ASGIApp:
    async def health(_: Request) -> Response:
        return JSONResponse({"status": "healthy"})

    async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        raise not_found(f"The path {scope['path'][:256]}")

    router = Router(
        [Route("/healthz", health, methods=["GET"]), *tokens_api.routes(), *metrics_api.routes(), *project.routes()],
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
            http=BoundedConnection,
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
        listening = socket.create_server(("127.0.0.1", port), backlog=2048)
    except OSError as error:
        raise CupolaError(
            "port_taken",
            f"Port {port} on {host} cannot be used for {what.upper()}: {os.strerror(error.errno or 0)}. Choose another with "
            f"--{what}-port or CUPOLA_{what.upper()}_PORT; 0 takes any free one.",
        ) from error
    # Connections inherit it: a peer that vanished without a word is noticed after a minute, however quiet its stream is.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        listening.setsockopt(socket.IPPROTO_TCP, option, value)
    return listening


def _on_signals(stopping: asyncio.Event, driver: Driver) -> None:
    def stop() -> None:
        if stopping.is_set():
            driver.hurry()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
