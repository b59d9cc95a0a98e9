"""DNS messages, put together by hand."""

from __future__ import annotations

import socket
import struct

A, CNAME, TXT, AAAA, OPT = 1, 5, 16, 28, 41


def name(text: str) -> bytes:
    labels = [label.encode("latin-1") for label in text.split(".")] if text else []
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def question(text: str, kind: int = A, number: int = 0x1234, *, space: int | None = None) -> bytes:
    """A question as a client sends it; `space` is what its extension says of the size of answers."""
    body = name(text) + struct.pack("!HH", kind, 1)
    extension = b"" if space is None else b"\0" + struct.pack("!HHIH", OPT, space, 0, 0)
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, int(space is not None)) + body + extension


def record(data: bytes, kind: int = A, ttl: int = 300, owner: bytes = b"\xc0\x0c", family: int = 1) -> bytes:
    return owner + struct.pack("!HHIH", kind, family, ttl, len(data)) + data


def address(text: str, ttl: int = 300) -> bytes:
    return record(socket.inet_aton(text), ttl=ttl)


def answer(asked: bytes, *records: bytes, code: int = 0, flags: int = 0x8180, count: int | None = None) -> bytes:
    """An answer to a question that was built by us; `count` in place of the true number of records."""
    number = int.from_bytes(asked[:2], "big")
    end = asked.index(b"\0", 12) + 5
    head = struct.pack("!HHHHHH", number, flags | code, 1, len(records) if count is None else count, 0, 0)
    return head + asked[12:end] + b"".join(records)


def header(message: bytes) -> tuple[int, int, int, int, int, int]:
    number, flags, questions, answers, authorities, additional = struct.unpack_from("!HHHHHH", message)
    return number, flags, questions, answers, authorities, additional


def code(message: bytes) -> int:
    return header(message)[1] & 0xF
