"""DNS messages (RFC 1035), as far as a resolver needs them that looks at one question and at the addresses of its answer.

Pointers inside a message are stepped over and never followed, so there is no way to run in circles. Whatever is not
understood is an error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address

MOST_BYTES = 4096
"""Of a message that is taken in."""
UDP_BYTES = 1232
"""Of an answer by UDP that passes every network unbroken; what we ask for, and the most we send."""
SMALLEST_UDP_BYTES = 512
MOST_RECORDS = 256
LONGEST_TTL = 3600
"""Seconds for which a sandbox may keep an answer, whatever the answer says."""
OWN_TTL = 60

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_ANSWER, _TRUNCATED, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE, _RCODE = 0x7800, 0x000F
_INTERNET = 1
_OPTIONS = 41


class Type(IntEnum):
    """The types of records that are treated in a way of their own."""

    A = 1
    AAAA = 28
    SVCB = 64
    HTTPS = 65
    TKEY = 249
    IXFR = 251
    AXFR = 252
    ANY = 255


class Code(IntEnum):
    """The outcomes of a question that are used here."""

    NO_ERROR = 0
    FORMAT_ERROR = 1
    SERVER_FAILURE = 2
    NO_SUCH_NAME = 3
    NOT_IMPLEMENTED = 4
    REFUSED = 5


class Malformed(Exception):
    """Not a message that is understood. `reply` is what to answer; None means nothing."""

    def __init__(self, reply: bytes | None = None) -> None:
        super().__init__()
        self.reply = reply


@dataclass(frozen=True)
class Query:
    """A question. `labels` are as they came; `space` is how long an answer by UDP may be; None without extensions."""

    id: int
    labels: tuple[bytes, ...]
    type: int
    space: int | None

    @property
    def name(self) -> str:
        """In lower case, with what is not a printable character of a name as `\\DDD`."""
        return ".".join(_escape(label) for label in self.labels).lower()

    @property
    def question(self) -> bytes:
        """The question section, as it came."""
        return _name(self.labels) + struct.pack("!HH", self.type, _INTERNET)

    @property
    def plain_question(self) -> bytes:
        """The question section with the name in lower case, of the same length."""
        return _plain(self.question)


@dataclass(frozen=True)
class Reply:
    """The answer of another resolver: its addresses, and its answer section with `count` records."""

    code: int
    truncated: bool
    addresses: tuple[IPv4Address, ...]
    least_ttl: int
    count: int
    section: bytes


def parse_query(data: bytes) -> Query:
    """A question as a sandbox sends it. Raises Malformed."""
    if not _HEADER.size <= len(data) <= MOST_BYTES:
        raise Malformed
    number, flags, questions, answers, authorities, additional = _HEADER.unpack_from(data)
    if flags & _ANSWER:
        # Answering answers would let two servers talk for ever.
        raise Malformed
    if flags & _OPCODE:
        raise Malformed(_error(number, flags, Code.NOT_IMPLEMENTED))
    malformed = Malformed(_error(number, flags, Code.FORMAT_ERROR))
    if questions != 1 or answers or authorities or additional > 1:
        raise malformed
    try:
        labels, at = _read_name(data, _HEADER.size)
        kind, family = struct.unpack_from("!HH", data, at)
        space = _space(data, at + 4) if additional else None
    except (IndexError, struct.error):
        raise malformed from None
    if family != _INTERNET:
        raise Malformed(_error(number, flags, Code.REFUSED))
    return Query(number, labels, kind, space)


def _space(data: bytes, at: int) -> int:
    """What the extension record at `at` says about the size of answers."""
    if data[at] != 0:
        raise IndexError
    kind: int
    size: int
    kind, size, _, length = _RECORD.unpack_from(data, at + 1)
    if kind != _OPTIONS or at + 11 + length > len(data):
        raise IndexError
    return min(max(size, SMALLEST_UDP_BYTES), UDP_BYTES)


def build_question(number: int, query: Query) -> bytes:
    """The question to ask another resolver: only name and type of the query go into it, the name in lower case."""
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 1) + query.plain_question + _options()


def parse_reply(data: bytes, number: int, query: Query) -> Reply:
    """The answer to `build_question(number, query)`. Raises Malformed when it is not one."""
    if len(data) < _HEADER.size:
        raise Malformed
    found, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    start = _HEADER.size + len(query.plain_question)
    if found != number or not flags & _ANSWER or flags & _OPCODE or questions != 1 or answers > MOST_RECORDS:
        raise Malformed
    if _plain(data[_HEADER.size : start]) != query.plain_question:
        raise Malformed
    kept = bytearray(data)
    addresses: list[IPv4Address] = []
    least, at = LONGEST_TTL, start
    truncated = bool(flags & _TRUNCATED)
    try:
        for _ in range(0 if truncated else answers):
            at = _skip_name(data, at)
            kind, family, ttl, length = _RECORD.unpack_from(data, at)
            _RECORD.pack_into(kept, at, kind, family, min(ttl, LONGEST_TTL), length)
            at += _RECORD.size + length
            if at > len(data):
                raise Malformed
            least = min(least, ttl)
            if kind == Type.A and family == _INTERNET:
                addresses.append(IPv4Address(data[at - length : at]))
    except (IndexError, struct.error, ValueError):
        raise Malformed from None
    count = 0 if truncated else answers
    return Reply(flags & _RCODE, truncated, tuple(addresses), least, count, bytes(kept[start:at]))


def build_answer(query: Query, reply: Reply, *, udp: bool) -> bytes:
    """The answer to a sandbox. One too long for UDP is cut off and says so: the sandbox asks again by TCP."""
    extension = b"" if query.space is None else _options()
    # The question is as long as the one that was asked in its stead, so that pointers into the message stay right.
    answer = _answer(query, reply.code, 0, reply.count, reply.section, extension)
    if udp and len(answer) > (query.space or SMALLEST_UDP_BYTES):
        return _answer(query, reply.code, _TRUNCATED, 0, b"", extension)
    return answer


def own_reply(code: Code, addresses: tuple[IPv4Address, ...] = ()) -> Reply:
    """A reply that nobody else was asked for."""
    to_the_question = struct.pack("!H", 0xC000 | _HEADER.size)
    section = b"".join(
        to_the_question + _RECORD.pack(Type.A, _INTERNET, OWN_TTL, 4) + address.packed for address in addresses
    )
    return Reply(code, False, addresses, OWN_TTL, len(addresses), section)


def _answer(query: Query, code: int, flags: int, count: int, section: bytes, extension: bytes) -> bytes:
    flags |= _ANSWER | _RECURSION_DESIRED | _RECURSION_AVAILABLE | code
    return _HEADER.pack(query.id, flags, 1, count, 0, 1 if extension else 0) + query.question + section + extension


def _options() -> bytes:
    return b"\0" + _RECORD.pack(_OPTIONS, UDP_BYTES, 0, 0)


def _error(number: int, flags: int, code: Code) -> bytes:
    kept = flags & (_OPCODE | _RECURSION_DESIRED)
    return _HEADER.pack(number, _ANSWER | _RECURSION_AVAILABLE | kept | code, 0, 0, 0, 0)


def _read_name(data: bytes, at: int) -> tuple[tuple[bytes, ...], int]:
    """The labels of a name and where it ends. Raises IndexError when it is too long, cut off or has pointers."""
    labels: list[bytes] = []
    size = 1
    while (length := data[at]) != 0:
        size += 1 + length
        if length > 63 or size > 255 or at + 1 + length > len(data):
            raise IndexError
        labels.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    return tuple(labels), at + 1


def _skip_name(data: bytes, at: int) -> int:
    """Where a name ends that may end in a pointer."""
    while (length := data[at]) != 0:
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise IndexError
        at += 1 + length
    return at + 1


def _plain(question: bytes) -> bytes:
    return question[:-4].lower() + question[-4:]


def _name(labels: tuple[bytes, ...]) -> bytes:
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def _escape(label: bytes) -> str:
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E and byte not in b".\\" else f"\\{byte:03d}" for byte in label)
