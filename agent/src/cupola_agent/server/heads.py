"""The head of an answer as bytes: checked, with what only the server can know."""

import re
import time
from typing import NamedTuple

from cupola_agent.exchange import HeaderPairs

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_OURS = frozenset({b"date", b"keep-alive", b"transfer-encoding", b"upgrade"})
_MAX_NAMES = 1024
_names: set[bytes] = set()
"""Names that were found right and mean nothing to the server; filled as they are used."""

_status_lines = {200: b"HTTP/1.1 200 OK\r\n"}
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_date = (0, b"")


class Head(NamedTuple):
    """Status line and headers, without the lines that frame the body and the empty one.

    `declared_length` and `close` are what the headers said about them; both belong to the server.
    """

    lines: bytes
    declared_length: int | None
    close: bool
    keep_alive: bool


def render(status: int, headers: HeaderPairs) -> Head:
    """Raises ValueError for a status, a name or a value that cannot be sent as it is."""
    length: int | None = None
    close = keep_alive = False
    parts = [_status_lines.get(status) or _status_line(status), _date_line()]
    count = 2
    for name, value in headers:
        if name not in _names:
            lower = name.lower()
            if lower == b"content-length":
                length = _length(value)
                continue
            if lower == b"connection":
                close = close or b"close" in value.lower()
                keep_alive = keep_alive or b"keep-alive" in value.lower()
                continue
            if lower in _OURS:
                continue
            _remember(name)
        parts += (name, b": ", value, b"\r\n")
        count += 1
    lines = b"".join(parts)
    # One search over the whole is much cheaper than one per value.
    if lines.count(b"\n") != count or lines.count(b"\r") != count or b"\0" in lines:
        raise ValueError("a header's value must not contain CR, LF or NUL")
    return Head(lines, length, close, keep_alive)


def _remember(name: bytes) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")
    if len(_names) < _MAX_NAMES:
        _names.add(name)


def _length(value: bytes) -> int:
    if not value.isdigit():
        raise ValueError(f"{value!r} is not a content-length")
    return int(value)


def _status_line(status: int) -> bytes:
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not the status of an answer")
    from http import HTTPStatus

    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    line = _status_lines[status] = f"HTTP/1.1 {status} {phrase}\r\n".encode()
    return line


def _date_line() -> bytes:
    global _date
    now = int(time.time())
    if now != _date[0]:
        at = time.gmtime(now)
        text = f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year}"
        _date = (now, f"date: {text} {at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} GMT\r\n".encode())
    return _date[1]
