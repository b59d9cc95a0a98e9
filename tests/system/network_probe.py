"""Runs inside a sandbox: makes attempts, all at once, and prints what came of each as JSON.

An attempt is a kind and a target: `tcp address:port`, `mapped address:port` (by an IPv6 socket), `udp address:port`,
`http url`, `name name`, `raw hex` (a DNS message by UDP) or `stream hex` (by TCP), `connections port`.
"""

import concurrent.futures
import json
import os
import socket
import sys
import urllib.request

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
            asking.sendto(b"hello", split(target))
            asking.recvfrom(100)
        return "reached"
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
        with open("/proc/net/if_inet6") as six:  # noqa: PTH123
            names = sorted({line.split()[-1] for line in six})
        return f"{sorted(name for _, name in socket.if_nameindex())} {names}"
    if kind == "from":
        source, _, destination = target.partition(">")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: an address that is not ours
            asking.bind((source, 0))
            asking.sendto(b"hello", split(destination))
        return "sent"
    raise ValueError(kind)


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
