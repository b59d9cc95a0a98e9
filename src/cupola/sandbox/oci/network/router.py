"""The router: a network namespace between the host and the sandboxes that may reach the outside.

Each of those is connected to it by a pair of interfaces and an address of its own, never to another; the router is connected
to the host by one pair. The namespace dies with the server, and the interfaces with it. All methods block, for
milliseconds at most, and are for the thread that enters namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import struct
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from cupola.domain.egress import EgressPolicy
from cupola.sandbox.oci.network import firewall, forwarding
from cupola.sandbox.oci.network.namespace import disable_ipv6, enter, make_namespace, read_routes, set_option
from cupola.sandbox.oci.network.netlink import Netlink
from cupola.sandbox.oci.network.nftables import Nftables, NftablesError

PREFIX = "cup-"
"""What the host's interfaces to routers begin with."""
INSIDE = "eth0"
USUAL_MTU = 1500
SIOCGIFMTU = 0x8921


def interface_name(installation: str) -> str:
    """The host's interface to an installation's router; Linux takes 15 characters."""
    return PREFIX + hashlib.sha256(installation.encode()).hexdigest()[:11]


class NoRouter(Exception):
    """Sandboxes cannot be connected to the outside; the message says what is missing."""


@dataclass(frozen=True)
class Connection:
    """A sandbox's connection: the router's interface to it, its number, which is never used again, and its address."""

    interface: str
    number: int
    slot: int
    address: IPv4Address


class Router:
    """The router of one installation. `host` is the host's namespace, `sandboxes` the network to give addresses from."""

    def __init__(self, installation: str, run: Path, host: int, sandboxes: IPv4Network) -> None:
        self._installation = installation
        self._run = run
        self._host = host
        self._sandboxes = sandboxes
        self._interface = interface_name(installation)
        self._number = 0
        self._host_addresses: frozenset[IPv4Address] | None = None
        self._uplinks: frozenset[str] | None = None
        self._closing = contextlib.ExitStack()

    def open(self) -> None:
        """Make it. Raises NoRouter."""
        try:
            self._open()
        except OSError as error:
            self.close()
            needs = "the right CAP_NET_ADMIN, veth interfaces and a writable /proc/sys/net"
            raise NoRouter(f"the kernel refused it ({error}); it takes {needs}") from error
        except NftablesError as error:
            self.close()
            raise NoRouter(f"the packet filter could not be set up: {error}") from error
        except NoRouter:
            self.close()
            raise

    def _open(self) -> None:
        enter(self._host)
        self._host_netlink = Netlink()
        self._closing.callback(self._host_netlink.close)
        # A server that was killed a moment ago may have left it.
        self._delete_link()
        transit = self._choose_transit()
        self._host_filter = Nftables()
        self._closing.callback(self._host_filter.close)
        self._table = f"inet cupola-{self._installation}"
        router_end, host_end = _pair(self._sandboxes, transit)
        self._host_filter.run(firewall.host_rules(self._table, self._interface, router_end))
        self._closing.callback(forwarding.switch_off, self._run)

        self._namespace = make_namespace()
        self._closing.callback(os.close, self._namespace)
        self._netlink = Netlink()
        self._closing.callback(self._netlink.close)
        self._filter = Nftables()
        self._closing.callback(self._filter.close)
        self._filter.run(firewall.router_rules(self._sandboxes))
        disable_ipv6("all")
        disable_ipv6("default")
        set_option("ipv4/conf/all/forwarding", "1")
        for option in ("route_localnet", "accept_redirects", "send_redirects", "accept_source_route"):
            set_option(f"ipv4/conf/all/{option}", "0")

        enter(self._host)
        self._mtu = _smallest_mtu(forwarding.uplinks())
        self._host_netlink.add_veth(self._interface, firewall.UPLINK, self._namespace, self._mtu)
        index = socket.if_nametoindex(self._interface)
        self._closing.callback(self._delete_link)
        disable_ipv6(self._interface)
        set_option(f"ipv4/conf/{self._interface}/forwarding", "1")
        set_option(f"ipv4/conf/{self._interface}/route_localnet", "0")
        self._host_netlink.add_address(index, IPv4Interface((host_end, 31)))
        self._host_netlink.set_up(index)

        enter(self._namespace)
        uplink = socket.if_nametoindex(firewall.UPLINK)
        self._netlink.add_address(uplink, IPv4Interface((router_end, 31)))
        self._netlink.set_up(uplink)
        self._netlink.add_default_route(host_end)
        self._free = deque(slot for slot in range(1, _slots(self._sandboxes)) if slot != transit)
        self._follow_the_host()

    def close(self) -> None:
        """Remove it, with every interface and rule."""
        enter(self._host)
        self._closing.close()

    @property
    def warning(self) -> str | None:
        """What may keep sandboxes from the outside although the router works."""
        with contextlib.suppress(NftablesError):
            rules = self._host_filter.run("list table ip filter")
            forward = rules.partition("chain FORWARD {")[2].partition("}")[0]
            if "policy drop" in forward and PREFIX not in rules:
                return (
                    "another program of this host, such as Docker, drops forwarded packets unless told otherwise, so also "
                    f"those of sandboxes: let it accept what comes in and goes out by {PREFIX}+; see docs/howto/network.md"
                )
        return None

    def connect(self, namespace: int) -> Connection:
        """Give a sandbox's namespace an interface, an address and a route; nothing passes yet. Raises OSError, NoRouter."""
        self._follow_the_host()
        if not self._free:
            raise NoRouter(f"all addresses of the setting sandbox_network, {self._sandboxes}, are in use")
        slot = self._free.popleft()
        self._number += 1
        connection = Connection(f"s{self._number}", self._number, slot, _pair(self._sandboxes, slot)[1])
        try:
            self._connect(namespace, connection)
        except BaseException:
            self._free.append(slot)
            raise
        return connection

    def _connect(self, namespace: int, connection: Connection) -> None:
        gateway = _pair(self._sandboxes, connection.slot)[0]
        enter(self._namespace)
        self._netlink.add_veth(connection.interface, INSIDE, namespace, self._mtu)
        index = socket.if_nametoindex(connection.interface)
        self._netlink.add_address(index, IPv4Interface((gateway, 31)))
        self._netlink.set_up(index)
        enter(namespace)
        disable_ipv6(INSIDE)
        inside = socket.if_nametoindex(INSIDE)
        with contextlib.closing(Netlink()) as netlink:
            netlink.add_address(inside, IPv4Interface((connection.address, 31)))
            netlink.set_up(inside)
            netlink.add_default_route(gateway)

    def apply(self, connection: Connection, policy: EgressPolicy) -> None:
        """Let a connected sandbox reach what a policy says. Raises NftablesError."""
        self._filter.run(firewall.add_sandbox(connection.interface, connection.number, policy))

    def admit(
        self, connection: Connection, addresses: Iterable[IPv4Address], ports: frozenset[int] | None, seconds: int
    ) -> None:
        """Let a sandbox reach addresses for a while, on any port when `ports` is None. Raises NftablesError."""
        self._filter.run(firewall.admit(connection.interface, addresses, ports, seconds))

    def release(self, connection: Connection, policy: EgressPolicy | None) -> None:
        """Undo `connect`, and `apply` if there was one. Raises NftablesError."""
        self._free.append(connection.slot)
        if policy is not None:
            self._filter.run(firewall.remove_sandbox(connection.interface, connection.number, policy))

    def _follow_the_host(self) -> None:
        """Learn what has changed of the host: its addresses and its way out."""
        enter(self._host)
        addresses = self._host_netlink.addresses()
        if addresses != self._host_addresses:
            self._filter.run(firewall.set_host_addresses(addresses))
            self._host_addresses = addresses
        uplinks = forwarding.uplinks()
        if uplinks != self._uplinks or not forwarding.all_on(uplinks):
            ours = forwarding.switch_on(self._run, uplinks)
            self._host_filter.run(firewall.set_switched_on(self._table, ours))
            self._uplinks = uplinks

    def _delete_link(self) -> None:
        with contextlib.suppress(OSError):
            self._host_netlink.delete_link(socket.if_nametoindex(self._interface))

    def _choose_transit(self) -> int:
        """A slot of the network, for the connection of host and router, that no other installation uses."""
        routes = read_routes()
        for interface, network in routes:
            if network.prefixlen and network.overlaps(self._sandboxes) and not interface.startswith(PREFIX):
                raise NoRouter(
                    f"the host has a route to {network} by {interface}, within {self._sandboxes}: give the setting "
                    "sandbox_network another private network"
                )
        slots = _slots(self._sandboxes)
        first = int.from_bytes(hashlib.sha256(self._installation.encode()).digest()[:8], "big")
        for attempt in range(slots - 1):
            slot = 1 + (first + attempt) % (slots - 1)
            pair = _pair(self._sandboxes, slot)
            taken = [network for interface, network in routes if network.prefixlen and pair[0] in network]
            if not taken:
                return slot
        raise NoRouter(
            f"other installations use all of {self._sandboxes}: give the setting sandbox_network another one"
        )


def _slots(network: IPv4Network) -> int:
    return network.num_addresses // 2


def _pair(network: IPv4Network, slot: int) -> tuple[IPv4Address, IPv4Address]:
    return network[2 * slot], network[2 * slot + 1]


def _smallest_mtu(interfaces: Iterable[str]) -> int:
    found = [USUAL_MTU]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for interface in interfaces:
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(asking, SIOCGIFMTU, struct.pack("16si12x", interface.encode(), 0))
                found.append(struct.unpack("16si12x", answer)[1])
    return min(found)
