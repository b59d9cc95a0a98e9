"""Attempts to reach networks without a policy that allows it, and to change the sandbox's own. `test_network.py` of the system
tests holds those against the policies."""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import partial
from pathlib import Path

from tests.attacks.attempts.registry import Impossible, Wall, add, attempt, host, refuse

SIOCSIFADDR, SIOCSIFFLAGS, SIOCBRADDBR = 0x8916, 0x8914, 0x89A0


def port() -> int:
    return int(host("port"))


def _connect(family: int, address: str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as trying:
        trying.settimeout(2)
        trying.connect((address, port()))


def _mapped() -> None:
    _connect(socket.AF_INET6, "::ffff:127.0.0.1")


for _name, _address in (
    ("loopback", "127.0.0.1"), ("another_loopback", "127.8.8.8"), ("any", "0.0.0.0"), ("decimal", "2130706433"),
    ("octal", "0177.0.0.1"), ("short", "127.1"), ("name", "localhost"),
):  # fmt: skip
    add(
        f"connect_host_by_{_name}",
        f"connect to a server on the host's loopback by {_address}",
        partial(_connect, socket.AF_INET, _address),
        Wall.NETWORK,
    )
add("connect_host_by_mapped", "connect to it by an IPv6 address that stands for 127.0.0.1", _mapped, Wall.NETWORK)


def _datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        asking.connect(("127.0.0.1", int(host("datagrams"))))
        asking.send(b"hello")
        asking.recv(100)


add("ask_host_by_datagram", "get an answer of the host by UDP", _datagram, Wall.NETWORK)


@attempt(Wall.NETWORK)
def connect_abstract_socket() -> None:
    """Connect to a socket of the host that is in no directory."""
    with socket.socket(socket.AF_UNIX) as trying:
        trying.connect("\0" + host("abstract"))


@attempt(Wall.NETWORK)
def take_a_port_of_the_host() -> None:
    """Listen where the host listens."""
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", port()))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return
            raise
    refuse("the address is free, so it is its own")


@attempt(Wall.NETWORK)
def list_host_interfaces() -> None:
    """List the host's interfaces."""
    if host("interfaces") == "lo":
        raise Impossible("the host has loopback only, as a sandbox has")
    if len(socket.if_nameindex()) == 1:
        refuse("it has loopback only")


@attempt(Wall.NETWORK)
def list_host_connections() -> None:
    """List the host's connections."""
    if f"{port():04X}" not in Path("/proc/net/tcp").read_text():
        refuse("the host's are not among them")


for _name, _address in (
    ("metadata", "169.254.169.254"), ("outside", "192.0.2.1"), ("private", "10.0.0.1"), ("link_local", "169.254.0.1"),
):  # fmt: skip

    def _route(address: str = _address) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((address, 9))
            if asking.getsockname()[0].startswith("127."):
                refuse("by its own loopback")

    add(f"route_to_{_name}", f"find a way to {_address}", _route, Wall.NETWORK)


def _socket(family: int, kind: int, protocol: int) -> None:
    socket.socket(family, kind, protocol).close()


for _name, _tries, _arguments in (
    ("raw_icmp", "send packets of its own making", (socket.AF_INET, socket.SOCK_RAW, 1)),
    ("raw_ip", "send packets with any sender", (socket.AF_INET, socket.SOCK_RAW, 255)),
    ("raw_ip6", "send IPv6 packets with any sender", (socket.AF_INET6, socket.SOCK_RAW, 58)),
):
    add(_name, _tries, partial(_socket, *_arguments), Wall.CAPABILITIES)
add(
    "packet_socket",
    "hear everything that passes an interface",
    partial(_socket, 17, socket.SOCK_RAW, 3),
    *(Wall.CAPABILITIES, Wall.SECCOMP),
)


def _interface(request: int, payload: bytes) -> None:
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, request, payload)


def _netlink(kind: int, body: bytes) -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.settimeout(2)
        link.send(struct.pack("=IHHII", 16 + len(body), kind, 0x5 | 0x400, 1, 0) + body)
        answer = link.recv(4096)
        number = -struct.unpack_from("=i", answer, 16)[0]
        if number:
            raise OSError(number, os.strerror(number))


def _address_body() -> bytes:
    label = struct.pack("=HH4s", 8, 1, socket.inet_aton("127.9.9.9")) + struct.pack(
        "=HH4s", 8, 2, socket.inet_aton("127.9.9.9")
    )
    return struct.pack("=BBBBI", 2, 32, 0, 254, 1) + label


for _name, _tries, _run in (
    ("add_address", "give itself an address",
     lambda: _interface(SIOCSIFADDR, struct.pack("16sHH4s8x", b"lo:9", 2, 0, socket.inet_aton("127.7.7.7")))),
    ("add_address_by_netlink", "give itself an address by netlink", lambda: _netlink(20, _address_body())),
    ("make_bridge", "make a bridge", lambda: _interface(SIOCBRADDBR, b"attempt\0" + bytes(24))),
    ("add_interface", "make an interface",
     lambda: _netlink(16, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + struct.pack("=HH8s", 12, 3, b"attempt\0")
                      + struct.pack("=HHHH6sxx", 16, 18, 10, 1, b"dummy\0"))),
    ("set_mark", "mark its packets, which rules of the host may trust", lambda: _mark()),
    ("forward", "become a transparent proxy", lambda: _transparent()),
):  # fmt: skip
    add(_name, _tries, _run, Wall.CAPABILITIES)


def _mark() -> None:
    with socket.socket() as marked:
        marked.setsockopt(socket.SOL_SOCKET, 36, 1)


def _transparent() -> None:
    with socket.socket() as transparent:
        transparent.setsockopt(socket.IPPROTO_IP, 19, 1)
