"""Asking the host's own resolvers: by UDP, and by TCP when an answer does not fit."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

from cupola.sandbox.oci.network.dns_message import MOST_BYTES, Malformed, Query, Reply, build_question, parse_reply
from cupola.sandbox.oci.network.resolver import NoAnswer

RESOLVER_FILE = Path("/etc/resolv.conf")
PORT = 53
ATTEMPTS = 2
PATIENCE = 2.0
"""Seconds that one resolver may take for one attempt."""
MOST_SERVERS = 3


class HostResolvers:
    """Addresses that are given, else those in the host's /etc/resolv.conf, read anew for each question."""

    def __init__(self, servers: Sequence[str] = ()) -> None:
        self._given = tuple(servers)

    async def ask(self, query: Query) -> Reply:
        """The first answer, whatever it says. Raises NoAnswer."""
        servers = self._given or await asyncio.to_thread(read_resolvers, RESOLVER_FILE)
        for server in servers[:MOST_SERVERS] * ATTEMPTS:
            with contextlib.suppress(OSError, TimeoutError, Malformed, asyncio.IncompleteReadError):
                async with asyncio.timeout(PATIENCE):
                    reply = await _ask_by_udp(server, query)
                    return await _ask_by_tcp(server, query) if reply.truncated else reply
        raise NoAnswer


def read_resolvers(file: Path) -> tuple[str, ...]:
    """The addresses of a resolv.conf(5); none when it cannot be read. Blocks."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return ()
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                found.append(str(ipaddress.ip_address(words[1])))
    return tuple(found)


async def _ask_by_udp(server: str, query: Query) -> Reply:
    loop = asyncio.get_running_loop()
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    # A new port and a new number for each question, so that nobody can guess what an answer would have to look like.
    number = secrets.randbits(16)
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect((server, PORT))
        await loop.sock_sendall(asking, build_question(number, query))
        while True:
            data = await loop.sock_recv(asking, MOST_BYTES)
            with contextlib.suppress(Malformed):
                return parse_reply(data, number, query)


async def _ask_by_tcp(server: str, query: Query) -> Reply:
    number = secrets.randbits(16)
    reader, writer = await asyncio.open_connection(server, PORT)
    try:
        question = build_question(number, query)
        writer.write(len(question).to_bytes(2, "big") + question)
        size = int.from_bytes(await reader.readexactly(2), "big")
        return parse_reply(await reader.readexactly(size), number, query)
    finally:
        writer.transport.abort()
