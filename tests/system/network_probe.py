"""Runs inside a sandbox: makes attempts, those of one step at once, and prints what came of each as JSON.

An attempt is a kind and a target: `tcp address:port`, `mapped address:port` (by an IPv6 socket), `udp address:port`,
`udplite address:port`, `routed hop>address:port` (by a source route), `from source>address:port`, `ping address`, `http url`,
`name name`, `raw hex` (a DNS message by UDP) or `stream hex` (by TCP), `echo port`, `abstract name` (a unix socket),
`change what` (of the sandbox's own network), `interfaces`.
"""

import concurrent.futures
import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

PATIENCE = 1.5


def split(target: str) -> tuple[str, int]:
    host, _, port = target.rpartition(":")
    return host, int(port)


def attempt(kind: str, target: str) -> str:
    if kind == "tcp":
        socket.create_connection(split(target), PATIENCE).close()
        return "reached"
    if kind == "mapped":
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as six:
            six.settimeout(PATIENCE)
            host, port = split(target)
            six.connect((f"::ffff:{host}", port))
        return "reached"
    if kind == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE)
            asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            asking.sendto(b"hello", split(target))
            asking.recvfrom(100)
        return "reached"
    if kind == "udplite":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE) as asking:
            asking.settimeout(PATIENCE)
            asking.sendto(b"hello", split(target))
            asking.recvfrom(100)
        return "reached"
    if kind == "routed":
        hop, _, destination = target.partition(">")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE)
            asking.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x83\x07\x04" + socket.inet_aton(hop) + b"\0")
            asking.sendto(b"hello", split(destination))
            asking.recvfrom(100)
        return "reached"
    if kind == "abstract":
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.connect(f"\0{target}")
        return "reached"
    if kind == "change":
        CHANGES[target]()
        return "changed"
    if kind == "http":
        with urllib.request.urlopen(target, timeout=PATIENCE) as answer:  # noqa: S310
            return str(answer.read().decode())
    if kind == "name":
        found = socket.getaddrinfo(target, None, type=socket.SOCK_STREAM)
        return " ".join(sorted({str(entry[4][0]) for entry in found}))
    if kind == "ping":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as asking:
            asking.settimeout(PATIENCE)
            asking.sendto(b"\x08\x00\xf7\xff\x00\x00\x00\x00", (target, 0))
            asking.recvfrom(100)
        return "reached"
    if kind == "raw":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE)
            asking.sendto(bytes.fromhex(target), ("127.0.0.1", 53))
            return asking.recv(4096).hex()
    if kind == "stream":
        with socket.create_connection(("127.0.0.1", 53), PATIENCE) as asking:
            message = bytes.fromhex(target)
            asking.sendall(len(message).to_bytes(2, "big") + message)
            return asking.recv(65536).hex()
    if kind == "echo":
        with socket.create_connection(("127.0.0.1", int(target)), PATIENCE) as asking:
            asking.sendall(b"hello")
            asking.shutdown(socket.SHUT_WR)
            return asking.makefile("rb").read().decode()
    if kind == "addresses":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect(("198.51.100.10", 9))
            return str(asking.getsockname()[0])
    if kind == "interfaces":
        names = sorted({line.split()[-1] for line in Path("/proc/net/if_inet6").read_text().splitlines()})
        assert sorted(os.listdir("/sys/class/net")) == sorted(name for _, name in socket.if_nameindex())  # noqa: PTH208
        return f"{sorted(name for _, name in socket.if_nameindex())} {names}"
    if kind == "from":
        source, _, destination = target.partition(">")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: an address that is not ours
            asking.bind((source, 0))
            asking.sendto(b"hello", split(destination))
        return "sent"
    raise ValueError(kind)


def netlink(kind: int, flags: int, body: bytes, family: int = socket.NETLINK_ROUTE) -> None:
    """Ask the kernel for a change; raises OSError when it refuses."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as asking:
        asking.settimeout(PATIENCE)
        asking.bind((0, 0))
        asking.send(struct.pack("=IHHII", 16 + len(body), kind, 5 | flags, 1, 0) + body)
        (code,) = struct.unpack_from("=i", asking.recv(4096), 16)
        if code:
            raise OSError(-code, os.strerror(-code))


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def interface() -> int:
    return max(number for number, _ in socket.if_nameindex())


def command(request: int, argument: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, request, argument)


def address(text: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))


def option(number: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET if number == 36 else socket.IPPROTO_IP, number, 1)


def system(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


NEW_NAMESPACES = 0x10000000 | 0x40000000  # of users and of the network
CHANGES: dict[str, Callable[[], object]] = {
    "raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close(),
    "raw icmp": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close(),
    "raw ipv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW).close(),
    "packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300).close(),
    "cooked packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0x0300).close(),
    "add address": lambda: netlink(20, 0x600, struct.pack("=BBBBi", 2, 24, 0, 0, interface())
                                   + attribute(2, b"\x0a\xb7\0\x09") + attribute(1, b"\x0a\xb7\0\x09")),
    "delete address": lambda: netlink(21, 0, struct.pack("=BBBBi", 2, 31, 0, 0, interface())),
    "add route": lambda: netlink(24, 0x600, struct.pack("=BBBBBBBBI", 2, 8, 0, 0, 254, 3, 0, 1, 0)
                                 + attribute(1, b"\x0a\0\0\0") + attribute(4, struct.pack("=i", interface()))),
    "delete route": lambda: netlink(25, 0, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)),
    "add interface": lambda: netlink(16, 0x600, struct.pack("=BxHiII", 0, 0, 0, 0, 0)
                                     + attribute(18, attribute(1, b"dummy"))),
    "add pair": lambda: netlink(16, 0x600, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(18, attribute(1, b"veth"))),
    "add tunnel": lambda: netlink(16, 0x600, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(18, attribute(1, b"ipip"))),
    "switch off": lambda: netlink(16, 0, struct.pack("=BxHiII", 0, 0, interface(), 0, 1)),
    "change hardware address": lambda: netlink(16, 0, struct.pack("=BxHiII", 0, 0, interface(), 0, 0)
                                               + attribute(1, b"\2\0\0\0\0\1")),
    "add neighbour": lambda: netlink(28, 0x600, struct.pack("=BxxxiHBB", 2, interface(), 0x80, 0, 0)
                                     + attribute(1, b"\x0a\xb7\0\x09") + attribute(2, b"\2\0\0\0\0\1")),
    "add proxy neighbour": lambda: netlink(28, 0x600, struct.pack("=BxxxiHBB", 2, interface(), 0x80, 8, 0)
                                           + attribute(1, b"\x0a\xb7\0\x09")),
    "add rule": lambda: netlink(32, 0x600, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)),
    "packet filter": lambda: netlink(16, 0, struct.pack("=BBH", 0, 0, 0x0A00), 12),
    "connection tracking": lambda: netlink(0x0102, 0, struct.pack("=BBH", 2, 0, 0), 12),
    "ipsec": lambda: netlink(0x1C, 0, bytes(8), 6),
    "address by ioctl": lambda: command(0x8916, struct.pack("16s16s8x", b"eth0", address("10.183.0.9"))),
    "flags by ioctl": lambda: command(0x8914, struct.pack("16sH22x", b"eth0", 0x143)),
    "route by ioctl": lambda: command(0x890B, bytes(8) + address("10.0.0.0") + address("10.183.0.8") + bytes(80)),
    "neighbour by ioctl": lambda: command(0x8955, address("10.183.0.9") + struct.pack("=H14x", 1) + bytes(52)),
    "mark": lambda: option(36),
    "transparent": lambda: option(19),
    "forwarding": lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"),
    "ipv6": lambda: Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("0"),
    "unprivileged ping": lambda: Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0"),
    "resolver": lambda: Path("/etc/resolv.conf").write_text("nameserver 198.51.100.53"),
    "hosts": lambda: Path("/etc/hosts").write_text("198.51.100.10 allowed.example"),
    "tunnel device": lambda: os.mknod("/home/session/tun", 0o20666, os.makedev(10, 200)),
    "new namespaces": lambda: system("unshare", NEW_NAMESPACES),
    "another namespace": lambda: system("setns", os.open("/proc/1/ns/net", os.O_RDONLY), 0x40000000),
    "program in the kernel": lambda: system("syscall", 321, 5, 0, 0),
}  # fmt: skip


def outcome(both: list[str]) -> str:
    try:
        return attempt(*both)
    except OSError as error:
        return f"failed: {type(error).__name__}: {error}"


def steps() -> None:
    for step in json.loads(os.environ["ATTEMPTS"]):
        with concurrent.futures.ThreadPoolExecutor(len(step)) as threads:
            for result in threads.map(outcome, step):
                print(json.dumps(result), flush=True)


def serve() -> None:
    with socket.create_server(("0.0.0.0", 8088)) as listening:
        print(json.dumps(attempt("addresses", "")), flush=True)
        while True:
            listening.accept()[0].close()


if __name__ == "__main__":
    serve() if "serve" in sys.argv else steps()
