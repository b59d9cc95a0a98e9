"""A small internet: network namespaces that stand for the host, for what is outside and for a private network.

The calling thread, and whatever it starts, is moved to a host of its own, so that nothing on this machine is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface

from cupola.sandbox.oci.network.namespace import LOOPBACK, current_namespace, enter, make_namespace, set_option
from cupola.sandbox.oci.network.netlink import Netlink

HOST = "203.0.113.2"
GATEWAY = "203.0.113.1"
PUBLIC, OTHER, DNS = "198.51.100.10", "198.51.100.20", "198.51.100.53"
METADATA = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
REMOTE_PRIVATE = ("10.1.2.3", "172.20.0.5", "192.168.5.5", "100.64.9.9", "198.18.0.9")
LAN_HOST, LAN = "192.168.77.1", "192.168.77.2"
BRIDGE = "172.17.0.1"
"""An address that the host has on no interface that leads anywhere."""
HOST_ADDRESSES = (HOST, LAN_HOST, BRIDGE)


@dataclass
class Internet:
    """What was seen outside, and what the name server says."""

    host: int
    outside: int
    lan: int
    visits: list[tuple[str, str]] = field(default_factory=list)
    """The address visited and the one the visitor has."""
    questions: list[str] = field(default_factory=list)
    """Every name that reached the name server, with its type."""
    zone: dict[str, list[str]] = field(default_factory=dict)
    """What each name stands for: addresses, a text, or `@` and the name that it is an alias of."""
    ttl: int = 1

    def visited(self, address: str) -> bool:
        return any(address == to for to, _ in self.visits)


@contextlib.contextmanager
def small_internet() -> Iterator[Internet]:
    own = current_namespace()
    outside, lan, host = (_namespace() for _ in range(3))
    found = Internet(host, outside, lan)
    _connect(host, "wan", (f"{HOST}/30",), outside, "out", (f"{GATEWAY}/30",))
    _connect(host, "lan", (f"{LAN_HOST}/24",), lan, "eth", (f"{LAN}/24",))
    _add(host, LOOPBACK, f"{BRIDGE}/32")
    for address in (PUBLIC, OTHER, DNS, *METADATA, *REMOTE_PRIVATE):
        _add(outside, LOOPBACK, f"{address}/32")
    # Whoever makes a further network reachable lets its interface forward.
    enter(host)
    set_option("ipv4/conf/lan/forwarding", "1")
    with contextlib.closing(Netlink()) as netlink:
        netlink.add_default_route(IPv4Address(GATEWAY))
    for namespace, gateway in ((outside, HOST), (lan, LAN_HOST)):
        enter(namespace)
        with contextlib.closing(Netlink()) as netlink:
            netlink.add_default_route(IPv4Address(gateway))
    servers = [_Servers(found, namespace) for namespace in (outside, lan)]
    enter(host)
    try:
        yield found
    finally:
        for server in servers:
            server.stop()
        enter(own)
        for namespace in (own, outside, lan, host):
            os.close(namespace)


def _namespace() -> int:
    made = make_namespace()
    # New ones begin as the machine's own one is, which somebody may have made a router.
    set_option("ipv4/ip_forward", "0")
    return made


@contextlib.contextmanager
def inside(namespace: int, back: int) -> Iterator[None]:
    """Run the block in a network namespace, in this thread."""
    enter(namespace)
    try:
        yield
    finally:
        enter(back)


def _connect(
    a: int, a_name: str, a_addresses: tuple[str, ...], b: int, b_name: str, b_addresses: tuple[str, ...]
) -> None:
    enter(a)
    with contextlib.closing(Netlink()) as netlink:
        netlink.set_up(LOOPBACK)
        netlink.add_veth(a_name, b_name, b, 1500)
    for namespace, name, addresses in ((a, a_name, a_addresses), (b, b_name, b_addresses)):
        enter(namespace)
        index = socket.if_nametoindex(name)
        with contextlib.closing(Netlink()) as netlink:
            netlink.set_up(LOOPBACK)
            for address in addresses:
                netlink.add_address(index, IPv4Interface(address))
            netlink.set_up(index)


def _add(namespace: int, index: int, address: str) -> None:
    enter(namespace)
    with contextlib.closing(Netlink()) as netlink:
        netlink.add_address(index, IPv4Interface(address))


class _Servers:
    """HTTP on port 80 and 8080, names on 53, an echo by UDP on 9, on every address of a namespace; in an own thread."""

    def __init__(self, internet: Internet, namespace: int) -> None:
        self._internet = internet
        self._namespace = namespace
        self._stop: Callable[[], object] = lambda: None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="internet")
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._stop()
        self._thread.join(10)

    async def _run(self) -> None:
        enter(self._namespace)
        loop = asyncio.get_running_loop()
        stopping = asyncio.Event()
        self._stop = lambda: loop.call_soon_threadsafe(stopping.set)
        servers = [
            await asyncio.start_server(handler, sock=socket.create_server(("0.0.0.0", port)))
            for port, handler in ((80, self._http), (8080, self._http), (53, self._dns_stream), (853, self._http))
        ]
        transports = []
        for port, answer, protocol in ((53, self._dns, 0), (9, self._echo, 0), (9, self._echo, socket.IPPROTO_UDPLITE)):
            try:
                opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol)
            except OSError:
                # A kernel without this protocol.
                continue
            opened.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: which of our addresses was meant
            opened.bind(("0.0.0.0", port))
            opened.setblocking(False)
            loop.add_reader(opened, self._datagram, opened, answer)
            transports.append(opened)
        self._ready.set()
        await stopping.wait()
        for server in servers:
            server.close()
        for opened in transports:
            loop.remove_reader(opened)
            opened.close()

    async def _http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            here, there = writer.get_extra_info("sockname"), writer.get_extra_info("peername")
            self._internet.visits.append((here[0], there[0]))
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split()[1]
            if path.startswith("/to/"):
                answer = f"HTTP/1.1 302 Found\r\nlocation: http://{path[4:]}/\r\ncontent-length: 0\r\n\r\n"
            else:
                body = f"you are {there[0]}"
                answer = f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}"
            writer.write(answer.encode())
            await writer.drain()
        writer.close()

    def _datagram(self, opened: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        data, ancillary, _, source = opened.recvmsg(4096, 256)
        here = socket.inet_ntoa(ancillary[0][2][4:8])
        self._internet.visits.append((here, source[0]))
        reply = answer(data)
        # From the address that was asked, as any client wants it.
        meant = [(socket.IPPROTO_IP, 8, struct.pack("=i4s4s", 0, ancillary[0][2][4:8], bytes(4)))]
        with contextlib.suppress(OSError):
            opened.sendmsg([reply], meant, 0, source)

    def _echo(self, data: bytes) -> bytes:
        return data

    def _dns(self, data: bytes, *, whole: bool = False) -> bytes:
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]].decode("latin-1"))
            at += 1 + data[at]
        kind = int.from_bytes(data[at + 1 : at + 3], "big")
        name = ".".join(labels)
        self._internet.questions.append(f"{name} {kind}")
        question = data[12 : at + 5]
        owner, section, count = b"\xc0\x0c", b"", 0
        values = self._internet.zone.get(name.lower(), [])
        if values and values[0].startswith("@"):
            alias = values[0][1:]
            target = b"".join(bytes((len(label),)) + label.encode() for label in alias.split(".")) + b"\0"
            section, count, values = self._record(owner, 5, target), 1, self._internet.zone.get(alias, [])
            owner = target
        for value in values:
            if kind == 1 and value[0].isdecimal():
                section += self._record(owner, 1, IPv4Address(value).packed)
                count += 1
            elif kind == 16 and not value[0].isdecimal():
                section += self._record(owner, 16, bytes((len(value),)) + value.encode())
                count += 1
        code = 0 if values else 3
        if len(section) > 1000 and not whole:
            return data[:2] + struct.pack("!HHHHH", 0x8380, 1, 0, 0, 0) + question
        return data[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, count, 0, 0) + question + section

    def _record(self, owner: bytes, kind: int, content: bytes) -> bytes:
        return owner + struct.pack("!HHIH", kind, 1, self._internet.ttl, len(content)) + content

    async def _dns_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                answer = self._dns(await reader.readexactly(size), whole=True)
                writer.write(len(answer).to_bytes(2, "big") + answer)
        writer.close()
