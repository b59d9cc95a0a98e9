"""The networks of sandboxes: each has a namespace of its own, with the platform's endpoint and a name service inside, and a
way out if its policy has one. Everything stands before the sandbox's first process runs.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import ParamSpec, TypeVar

from cupola.domain.egress import EgressMode, EgressPolicy
from cupola.sandbox.base import SandboxError
from cupola.sandbox.oci.network.dns_server import DnsServer
from cupola.sandbox.oci.network.endpoint import Endpoint
from cupola.sandbox.oci.network.namespace import LOOPBACK, current_namespace, make_namespace
from cupola.sandbox.oci.network.netlink import Netlink
from cupola.sandbox.oci.network.nftables import NftablesError
from cupola.sandbox.oci.network.pool import Pool
from cupola.sandbox.oci.network.refusals import Refusals
from cupola.sandbox.oci.network.resolver import NoAnswer, Ports, Resolver
from cupola.sandbox.oci.network.router import Connection, NoRouter, Router
from cupola.sandbox.oci.network.upstream import HostResolvers

logger = logging.getLogger(__name__)

NAME_SERVICE_PORT = 53
BACKLOG = 256
"""Connections that wait to be taken; beyond it the kernel breaks them off."""
DEFAULT_SANDBOXES = IPv4Network("10.183.0.0/16")
UDP_BUFFER = 64 * 1024

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True)
class NetworkSettings:
    """`endpoint_port` is the server's HTTPS port on the host's loopback, which sandboxes find on theirs; None gives them none.
    `sandboxes` is where their addresses are from. `resolvers` are asked for names, else the host's own are. With `isolated`
    there is no way out: the host's network may not be changed.
    """

    endpoint_port: int | None = None
    sandboxes: IPv4Network = DEFAULT_SANDBOXES
    resolvers: tuple[str, ...] = ()
    isolated: bool = False


@dataclass(frozen=True)
class _Prepared:
    namespace: int
    connection: Connection | None
    sockets: tuple[socket.socket, ...]
    """For names by UDP, for names by TCP, for the endpoint if there is one."""


@dataclass
class SandboxNetwork:
    """The network of one sandbox."""

    prepared: _Prepared
    servers: tuple[Endpoint | DnsServer, ...]
    applied: EgressPolicy | None = None

    @property
    def namespace(self) -> int:
        """A descriptor that is valid until the network is detached."""
        return self.prepared.namespace

    @property
    def path(self) -> str:
        """Where an OCI runtime finds the namespace."""
        return f"/proc/{os.getpid()}/fd/{self.namespace}"


class Network:
    """Makes and removes the networks of an installation's sandboxes; `run` is its run directory."""

    def __init__(self, installation: str, run: Path, settings: NetworkSettings) -> None:
        self._installation = installation
        self._run = run
        self._settings = settings
        self._upstream = HostResolvers(settings.resolvers)
        # The only thread that enters namespaces here, and it enters the right one each time.
        self._thread = ThreadPoolExecutor(1, "network")
        self._router: Router | None = None
        self._networks: dict[str, SandboxNetwork] = {}
        self._isolated: Pool[_Prepared] = Pool(functools.partial(self._on_thread, self._prepare), self._discard)
        self._connected: Pool[_Prepared] = Pool(
            functools.partial(self._on_thread, self._prepare_connected), self._discard
        )
        self.no_egress: str | None = None
        """Why sandboxes cannot have a way out here, once it is open; None when they can."""
        self.warning: str | None = None
        """What may be in the way of their way out, once it is open."""

    @property
    def ports(self) -> frozenset[int]:
        """The TCP ports that the platform has inside of each sandbox."""
        endpoint = self._settings.endpoint_port
        return frozenset({NAME_SERVICE_PORT} if endpoint is None else {NAME_SERVICE_PORT, endpoint})

    async def open(self) -> None:
        """Get ready. Where sandboxes can have no way out, those that need none still can be made."""
        await self._on_thread(self._open)

    def _open(self) -> None:
        self._host = current_namespace()
        if self._settings.isolated:
            self.no_egress = "only root may connect sandboxes to the host's network"
            return
        router = Router(self._installation, self._run, self._host, self._settings.sandboxes)
        try:
            router.open()
        except NoRouter as error:
            self.no_egress = str(error)
        else:
            self._router = router
            self.warning = router.warning

    async def close(self) -> None:
        """Give up what `open` took."""
        await self._isolated.close()
        await self._connected.close()
        await self._on_thread(self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._router is not None:
            self._router.close()
        os.close(self._host)

    async def attach(
        self, sandbox: str, policy: EgressPolicy, hostname: str, report: Callable[[str], None]
    ) -> SandboxNetwork:
        """Make the network of a sandbox; `report` is told what it is refused. Raises SandboxError."""
        if policy.mode is not EgressMode.NONE and self._router is None:
            raise SandboxError(
                f"the project's egress policy is {policy.mode}, which this host cannot provide: {self.no_egress}"
            )
        try:
            prepared = await (self._isolated if policy.mode is EgressMode.NONE else self._connected).take()
        except (OSError, NoRouter, NftablesError) as error:
            raise SandboxError(f"its network could not be made: {error}") from error
        network = SandboxNetwork(prepared, self._servers(sandbox, prepared, policy, hostname, report))
        self._networks[sandbox] = network
        if prepared.connection is not None and self._router is not None:
            try:
                await self._on_thread(self._router.apply, prepared.connection, policy)
            except NftablesError as error:
                raise SandboxError(f"its egress policy could not be applied: {error}") from error
            network.applied = policy
        for server in network.servers:
            server.open()
        return network

    def _servers(
        self,
        sandbox: str,
        prepared: _Prepared,
        policy: EgressPolicy,
        hostname: str,
        report: Callable[[str], None],
    ) -> tuple[Endpoint | DnsServer, ...]:
        async def admit(addresses: tuple[IPv4Address, ...], ports: Ports, seconds: int) -> None:
            if self._router is None or prepared.connection is None:
                raise NoAnswer
            try:
                await self._on_thread(self._router.admit, prepared.connection, addresses, ports, seconds)
            except NftablesError as error:
                raise NoAnswer from error

        resolver = Resolver(policy, hostname, self._upstream, admit, Refusals(report))
        udp, tcp, *endpoint = prepared.sockets
        names = DnsServer(resolver, udp, tcp)
        if self._settings.endpoint_port is None:
            return (names,)
        return (names, Endpoint(sandbox, endpoint[0], self._settings.endpoint_port))

    async def detach(self, sandbox: str) -> None:
        """Remove a sandbox's network; a name that has none is fine."""
        network = self._networks.pop(sandbox, None)
        if network is not None:
            await asyncio.gather(*(server.close() for server in network.servers))
            await self._on_thread(self._release, network.prepared, network.applied)

    async def _discard(self, prepared: _Prepared) -> None:
        await self._on_thread(self._release, prepared, None)

    def _release(self, prepared: _Prepared, applied: EgressPolicy | None) -> None:
        for opened in prepared.sockets:
            opened.close()
        os.close(prepared.namespace)
        if prepared.connection is not None and self._router is not None:
            try:
                self._router.release(prepared.connection, applied)
            except NftablesError as error:
                logger.warning("rules of a sandbox that is gone are left in the router: %s", error)

    def _prepare(self) -> _Prepared:
        namespace = make_namespace()
        sockets: list[socket.socket] = []
        try:
            netlink = Netlink()
            netlink.set_up(LOOPBACK)
            netlink.close()
            self._open_sockets(sockets)
        except BaseException:
            for opened in sockets:
                opened.close()
            os.close(namespace)
            raise
        return _Prepared(namespace, None, tuple(sockets))

    def _open_sockets(self, sockets: list[socket.socket]) -> None:
        sockets.append(_bound(socket.SOCK_DGRAM, NAME_SERVICE_PORT))
        sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UDP_BUFFER)
        sockets.append(_bound(socket.SOCK_STREAM, NAME_SERVICE_PORT))
        if self._settings.endpoint_port is not None:
            sockets.append(_bound(socket.SOCK_STREAM, self._settings.endpoint_port))

    def _prepare_connected(self) -> _Prepared:
        if self._router is None:
            raise NoRouter(self.no_egress or "there is no router")
        prepared = self._prepare()
        try:
            connection = self._router.connect(prepared.namespace)
        except BaseException:
            self._release(prepared, None)
            raise
        return _Prepared(prepared.namespace, connection, prepared.sockets)

    async def _on_thread(
        self, work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Result:
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, functools.partial(work, *arguments, **named)
        )


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        opened.bind(("127.0.0.1", port))
        if kind == socket.SOCK_STREAM:
            opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened
