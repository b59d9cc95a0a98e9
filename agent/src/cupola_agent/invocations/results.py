"""What a handler of invocations may give, and the answer it stands for (contract section 5.1)."""

import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Any

from cupola_agent import jsons
from cupola_agent.handlers import as_pieces, is_stream
from cupola_agent.http import Answer, Header, Response

TEXT = b"text/plain; charset=utf-8"
BYTES = b"application/octet-stream"
JSON = b"application/json"

# The server says how long a body is and how it is sent; the library says whose answer it is.
_NOT_THE_HANDLERS = frozenset({b"content-length", b"transfer-encoding", b"x-request-id", b"x-platform-server"})
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")


@dataclass(frozen=True, slots=True)
class Streamed:
    """An answer in pieces of str and bytes. Where `media_type` is None, the first piece tells text from bytes."""

    status: int
    headers: tuple[Header, ...]
    media_type: bytes | None
    pieces: AsyncGenerator[Any, None]

    @property
    def of_events(self) -> bool:
        return self.media_type is not None and self.media_type.lower().startswith(b"text/event-stream")


def result_of(given: Any) -> Answer | Streamed:
    """The answer for what a handler gave. Raises TypeError or ValueError when it cannot be sent."""
    status, pairs, body = _parts(given)
    if not 200 <= status <= 599:
        raise ValueError(f"not the status of an answer: {status}")
    headers = _checked_headers(pairs)
    types = [value for name, value in headers if name == b"content-type"]
    media_type = types[-1] if types else None
    others = tuple(pair for pair in headers if pair[0] != b"content-type")
    if is_stream(body):
        return Streamed(status, others, media_type, as_pieces(body))
    usual_type, content = _content(body)
    return Answer(status, ((b"content-type", media_type or usual_type), *others), content)


def piece_bytes(piece: Any) -> bytes:
    """Raises TypeError for what cannot be streamed."""
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    raise TypeError(f"an invocations handler streams str or bytes, not {type(piece).__name__}")


def _parts(given: Any) -> tuple[int, Iterable[tuple[str, str]], Any]:
    """Status, headers and body; also of the response objects of Starlette and its kin."""
    if isinstance(given, Response):
        chosen = [("content-type", given.media_type)] if given.media_type else []
        return given.status, [*given.headers.items(), *chosen], given.body
    status, headers = getattr(given, "status_code", None), getattr(given, "headers", None)
    if not isinstance(status, int) or headers is None:
        return 200, (), given
    # A mapping of Starlette gives a header that repeats, such as set-cookie, as often as it is there.
    pairs = list(headers.items())
    media_type = getattr(given, "media_type", None)
    if media_type and not any(name.lower() == "content-type" for name, _ in pairs):
        pairs.append(("content-type", media_type))
    for name in ("body_iterator", "body"):
        if hasattr(given, name):
            return int(status), pairs, getattr(given, name)
    raise TypeError(f"a {type(given).__name__} has no body that could be sent")


def _checked_headers(pairs: Iterable[tuple[str, str]]) -> tuple[Header, ...]:
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]
    for name, value in headers:
        if not _NAME.fullmatch(name) or any(sign in value for sign in b"\r\n\0"):
            raise ValueError(f"not an HTTP header: {name!r}: {value!r}")
    return tuple(pair for pair in headers if pair[0] not in _NOT_THE_HANDLERS)


def _content(body: Any) -> tuple[bytes, bytes]:
    """The usual media type of a body, and its bytes."""
    if body is None:
        return BYTES, b""
    if isinstance(body, str):
        return TEXT, body.encode()
    if isinstance(body, bytes | bytearray | memoryview):
        return BYTES, bytes(body)
    return JSON, jsons.encode(body)
