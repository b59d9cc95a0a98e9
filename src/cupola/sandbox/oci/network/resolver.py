"""The resolver of one sandbox: answers what the policy allows, and lets the sandbox reach what it answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address
from typing import Protocol

from cupola.domain.egress import EgressMode, EgressPolicy
from cupola.sandbox.oci.network.dns_message import (
    Code,
    Malformed,
    Query,
    Reply,
    Type,
    build_answer,
    own_reply,
    parse_query,
)
from cupola.sandbox.oci.network.refusals import Refusals

LOOPBACK = IPv4Address("127.0.0.1")
MOST_ADDRESSES = 1024
"""Addresses of names that one sandbox may reach at a time."""
SHORTEST_ADMISSION = 60
"""Seconds: who asks for a name connects a moment later, even if the answer is good for no time at all."""
ADMISSION_MARGIN = 60

Ports = frozenset[int] | None
"""None is all ports."""
Admit = Callable[[tuple[IPv4Address, ...], Ports, int], Awaitable[None]]
"""Lets the sandbox reach addresses for a number of seconds. Raises NoAnswer."""

_EMPTY = (Type.AAAA, Type.SVCB, Type.HTTPS)
"""Nothing of these is of use without IPv6, or would lead around the addresses that were looked at."""
_TRANSFERS = range(Type.TKEY, Type.ANY + 1)


class NoAnswer(Exception):
    """No resolver answered, or the answer could not be made good."""


class Upstream(Protocol):
    """What knows the answers to the questions that are allowed."""

    async def ask(self, query: Query) -> Reply:
        """Raises NoAnswer."""


class Resolver:
    """Answers the questions of one sandbox, whose own name is `hostname`."""

    def __init__(
        self,
        policy: EgressPolicy,
        hostname: str,
        upstream: Upstream,
        admit: Admit,
        refusals: Refusals,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._hostname = hostname.lower()
        self._upstream = upstream
        self._admit = admit
        self._refusals = refusals
        self._clock = clock
        self._admitting = asyncio.Lock()
        self._admitted: dict[tuple[IPv4Address, Ports], float] = {}

    async def answer(self, data: bytes, *, udp: bool) -> bytes | None:
        """The answer to a message; None for what deserves none."""
        try:
            query = parse_query(data)
        except Malformed as error:
            return error.reply
        try:
            reply = await self._resolve(query)
        except NoAnswer:
            reply = own_reply(Code.SERVER_FAILURE)
        return build_answer(query, reply, udp=udp)

    async def _resolve(self, query: Query) -> Reply:
        name = query.name
        if name in ("localhost", self._hostname) or name.endswith(".localhost"):
            # An image may ask here before it looks into /etc/hosts, or never look there.
            return own_reply(Code.NO_ERROR, (LOOPBACK,) if query.type == Type.A else ())
        if query.type in _TRANSFERS:
            return own_reply(Code.REFUSED)
        entries = self._policy.allowed(name)
        if self._policy.mode is not EgressMode.OPEN and not entries:
            self._refusals.note(name, f"The egress policy ({self._policy.mode}) does not allow the name {name}.")
            return own_reply(Code.NO_SUCH_NAME)
        if query.type in _EMPTY:
            return own_reply(Code.NO_ERROR)
        reply = await self._upstream.ask(query)
        for address in reply.addresses:
            if not self._policy.permits_answer(address):
                self._refusals.note(
                    name, f"The name {name} points to {address}, which the egress policy does not allow."
                )
                return own_reply(Code.NO_SUCH_NAME)
        if self._policy.mode is EgressMode.ALLOW_LIST and query.type == Type.A:
            numbers = frozenset(entry.port for entry in entries if entry.port is not None)
            anywhere = any(entry.port is None for entry in entries)
            await self._let_through(name, reply, None if anywhere else numbers)
        return reply

    async def _let_through(self, name: str, reply: Reply, ports: Ports) -> None:
        needed = max(reply.least_ttl, SHORTEST_ADMISSION)
        async with self._admitting:
            now = self._clock()
            missing = tuple(
                address
                for address in dict.fromkeys(reply.addresses)
                if self._admitted.get((address, ports), 0.0) < now + needed
            )
            if not missing:
                return
            self._admitted = {key: until for key, until in self._admitted.items() if until > now}
            if len(self._admitted) + len(missing) > MOST_ADDRESSES:
                self._refusals.note("", f"The name {name} was refused: {MOST_ADDRESSES} addresses are in use already.")
                raise NoAnswer
            seconds = needed + ADMISSION_MARGIN
            await self._admit(missing, ports, seconds)
            self._admitted.update({(address, ports): now + seconds for address in missing})
