"""What sandboxes of a project may reach outside: the egress policy, and the addresses that no policy opens."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar

from cupola.domain.errors import CupolaError, FieldProblem

Entry = TypeVar("Entry")

MOST_NAMES = 256
MOST_PRIVATE_RANGES = 64
LONGEST_NAME = 253

NEVER_REACHED = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "this host"
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the metadata services of most clouds
        "168.63.129.16/32",  # Azure's
        "100.100.100.200/32",  # Alibaba's
        "192.0.0.0/24",  # Oracle's, and protocol assignments
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
"""What no policy opens."""

PRIVATE = tuple(
    IPv4Network(text) for text in ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "198.18.0.0/15")
)
"""What a policy opens only by naming a range of it."""

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_READ_IN_TWO_WAYS = frozenset("ßς\u200c\u200d")
"""Characters that two generations of international domain names spell differently: they could name another owner."""


class EgressMode(StrEnum):
    """`open` reaches every public address, `allow-list` what it names, `none` nothing."""

    OPEN = "open"
    ALLOW_LIST = "allow-list"
    NONE = "none"


@dataclass(frozen=True)
class AllowedName:
    """A DNS name, in lower case and ASCII; with `wildcard` everything below it and not itself. `port` None is any."""

    name: str
    wildcard: bool = False
    port: int | None = None

    def __str__(self) -> str:
        prefix = "*." if self.wildcard else ""
        return f"{prefix}{self.name}" + ("" if self.port is None else f":{self.port}")

    def matches(self, name: str) -> bool:
        """Whether it stands for a name, given in lower case without a dot at its end."""
        return name.endswith(f".{self.name}") if self.wildcard else name == self.name


@dataclass(frozen=True)
class EgressPolicy:
    """What sandboxes of a project may reach beside the platform itself."""

    mode: EgressMode = EgressMode.NONE
    names: tuple[AllowedName, ...] = ()
    private_ranges: tuple[IPv4Network, ...] = ()

    def allowed(self, name: str) -> tuple[AllowedName, ...]:
        """The entries of an allow-list that a name matches."""
        wanted = name.lower().removesuffix(".")
        return tuple(entry for entry in self.names if entry.matches(wanted))

    def permits_answer(self, address: IPv4Address) -> bool:
        """Whether a name may stand for an address: a public one, or a private one that the policy lists."""
        if any(address in network for network in NEVER_REACHED):
            return False
        if any(address in network for network in self.private_ranges):
            return True
        return not any(address in network for network in PRIVATE)

    def to_json(self) -> dict[str, Any]:
        """The form that `parse_egress` reads."""
        return {
            "mode": self.mode.value,
            "names": [str(entry) for entry in self.names],
            "private_ranges": [str(network) for network in self.private_ranges],
        }


NO_EGRESS = EgressPolicy()


def parse_egress(value: dict[str, Any]) -> EgressPolicy:
    """The policy of a JSON object. Raises CupolaError that names every field at fault."""
    problems = [
        FieldProblem(field[:64], "is unknown; use mode, names and private_ranges")
        for field in sorted(value.keys() - {"mode", "names", "private_ranges"})
    ]
    mode = EgressMode.NONE
    try:
        mode = EgressMode(str(value.get("mode")))
    except ValueError:
        problems.append(FieldProblem("mode", "expected open, allow-list or none"))
    else:
        if mode is not EgressMode.ALLOW_LIST and value.get("names"):
            problems.append(FieldProblem("names", f"has no meaning with mode {mode}; leave it out, or use allow-list"))
        if mode is EgressMode.NONE and value.get("private_ranges"):
            problems.append(FieldProblem("private_ranges", "has no meaning with mode none; use allow-list"))
    names = _parsed(value, "names", MOST_NAMES, parse_name, problems)
    ranges = _parsed(value, "private_ranges", MOST_PRIVATE_RANGES, _parse_private_range, problems)
    if problems:
        text = "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:10])
        raise CupolaError("bad_request", f"{text}.", param=problems[0].field, problems=tuple(problems))
    return EgressPolicy(mode, names, ranges)


def _parsed(
    value: dict[str, Any], field: str, most: int, parse: Callable[[str], Entry], problems: list[FieldProblem]
) -> tuple[Entry, ...]:
    texts = value.get(field, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        problems.append(FieldProblem(field, "expected a list of strings"))
        return ()
    if len(texts) > most:
        problems.append(FieldProblem(field, f"has {len(texts)} entries; keep at most {most}"))
        return ()
    found: list[Entry] = []
    for index, text in enumerate(texts):
        try:
            found.append(parse(text))
        except ValueError as error:
            problems.append(FieldProblem(f"{field}[{index}]", f"{text[:64]!r} {error}"))
    return tuple(dict.fromkeys(found))


def parse_name(text: str) -> AllowedName:
    """An entry of an allow-list, such as `example.com`, `*.example.com` or `example.com:443`.

    Raises ValueError with the rest of a sentence that begins with the entry.
    """
    name, colon, port_text = text.strip().partition(":")
    port = None
    if colon:
        if not re.fullmatch("[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
            raise ValueError("has no port from 1 to 65535 after its colon; write name:443, without a scheme or path")
        port = int(port_text)
    wildcard = name.startswith("*.")
    name = name.removeprefix("*.").removesuffix(".")
    if "*" in name or not name:
        raise ValueError("is not a name; a * may only stand for whole labels at the front, as in *.example.com")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"is longer than {LONGEST_NAME} characters")
    name = _to_ascii(name).lower()
    labels = name.split(".")
    if len(name) > LONGEST_NAME or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("is not a DNS name; write one such as api.example.com, without a scheme or path")
    if labels[-1].isdecimal():
        raise ValueError("is an address; an allow-list takes names, and private_ranges takes private addresses")
    return AllowedName(name, wildcard, port)


def _to_ascii(name: str) -> str:
    if name.isascii():
        return name
    if _READ_IN_TWO_WAYS & set(name.lower()):
        raise ValueError("can be read as two names; write it in its form that begins with xn--")
    try:
        return name.encode("idna").decode("ascii")
    except UnicodeError:
        raise ValueError("is not a DNS name") from None


def _parse_private_range(text: str) -> IPv4Network:
    try:
        network = ipaddress.ip_network(text.strip())
    except ValueError:
        raise ValueError("is not a range; write one such as 10.20.0.0/16, with no bits after its length") from None
    if not isinstance(network, IPv4Network):
        raise ValueError("is of IPv6, which sandboxes do not have")
    if not any(network.subnet_of(private) for private in PRIVATE):
        within = ", ".join(map(str, PRIVATE))
        raise ValueError(f"is not private, so mode open reaches it or nothing does; give ranges within {within}")
    return network
