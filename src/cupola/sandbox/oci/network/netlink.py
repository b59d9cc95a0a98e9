"""The few messages of rtnetlink(7) that connect a sandbox: interfaces, addresses, routes."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Interface

NETLINK_ROUTE = 0
BUFFER = 64 * 1024

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACKNOWLEDGE, _DUMP, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x300, 0x200, 0x400
_NEWLINK, _DELLINK, _NEWADDR, _GETADDR, _NEWROUTE = 16, 17, 20, 22, 24
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 4, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_GATEWAY = 5
_IFF_UP = 1
_MAIN_TABLE, _PROTOCOL_BOOT, _SCOPE_UNIVERSE, _UNICAST = 254, 3, 0, 1
_NESTED = 0x8000


class Netlink:
    """A conversation with the kernel about the network namespace in which this was made. Blocks for a moment."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def add_veth(self, name: str, peer: str, namespace: int, mtu: int) -> None:
        """A pair of interfaces: `name` here, `peer` in another namespace. Raises OSError."""
        other = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0) + b"".join(
            (
                _attribute(_IFLA_IFNAME, peer.encode() + b"\0"),
                _attribute(_IFLA_MTU, struct.pack("=I", mtu)),
                _attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace)),
            )
        )
        data = _attribute(_IFLA_INFO_DATA | _NESTED, _attribute(_VETH_INFO_PEER | _NESTED, other))
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0) + b"".join(
            (
                _attribute(_IFLA_IFNAME, name.encode() + b"\0"),
                _attribute(_IFLA_MTU, struct.pack("=I", mtu)),
                _attribute(_IFLA_LINKINFO | _NESTED, _attribute(_IFLA_INFO_KIND, b"veth") + data),
            )
        )
        self._request(_NEWLINK, _CREATE | _EXCLUSIVE, body)

    def delete_link(self, index: int) -> None:
        """Remove an interface, and its peer. Raises OSError."""
        self._request(_DELLINK, 0, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 0))

    def set_up(self, index: int) -> None:
        """Switch an interface on. Raises OSError."""
        self._request(_NEWLINK, 0, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, _IFF_UP, _IFF_UP))

    def add_address(self, index: int, address: IPv4Interface) -> None:
        """Give an interface an address. Raises OSError."""
        packed = address.ip.packed
        body = struct.pack("=BBBBi", socket.AF_INET, address.network.prefixlen, 0, _SCOPE_UNIVERSE, index)
        body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        self._request(_NEWADDR, _CREATE | _EXCLUSIVE, body)

    def add_default_route(self, gateway: IPv4Address) -> None:
        """Send everything that has no other route to `gateway`. Raises OSError."""
        body = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _MAIN_TABLE, _PROTOCOL_BOOT, _SCOPE_UNIVERSE, _UNICAST, 0
        )
        self._request(_NEWROUTE, _CREATE | _EXCLUSIVE, body + _attribute(_RTA_GATEWAY, gateway.packed))

    def addresses(self) -> frozenset[IPv4Address]:
        """All IPv4 addresses of the namespace. Raises OSError."""
        found = set()
        self._send(_GETADDR, _DUMP, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0))
        for kind, body in self._replies():
            if kind == _NEWADDR:
                local = _attributes(body[8:]).get(_IFA_LOCAL)
                if local is not None:
                    found.add(IPv4Address(local))
        return frozenset(found)

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        self._send(kind, flags | _ACKNOWLEDGE, body)
        for _ in self._replies():
            pass

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST, self._sequence, 0) + body)

    def _replies(self) -> Iterator[tuple[int, bytes]]:
        """Messages of the answer, up to its end. Raises OSError when it is a refusal."""
        while True:
            data = self._socket.recv(BUFFER)
            at = 0
            while at + 16 <= len(data):
                length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
                body = data[at + 16 : at + length]
                at += (length + 3) & ~3
                if sequence != self._sequence:
                    continue
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    (code,) = struct.unpack_from("=i", body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield kind, body


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found
