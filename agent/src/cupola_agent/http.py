"""One call as the protocols see it, the answer they give, and what a handler of invocations reads and gives."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cupola_agent import jsons
from cupola_agent.call import Caller
from cupola_agent.exchange import Exchange

Header = tuple[bytes, bytes]


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: tuple[Header, ...]
    body: bytes

    @classmethod
    def text(cls, status: int, text: str, *headers: Header) -> "Answer":
        return cls(status, ((b"content-type", b"text/plain; charset=utf-8"), *headers), text.encode())

    @classmethod
    def json(cls, status: int, body: bytes, *headers: Header) -> "Answer":
        return cls(status, ((b"content-type", b"application/json"), *headers), body)

    def with_headers(self, *more: Header) -> "Answer":
        """The same answer with these headers, each in place of one of the same name."""
        names = {name for name, _ in more}
        return self._replace(headers=(*(pair for pair in self.headers if pair[0] not in names), *more))


@dataclass(frozen=True, slots=True)
class Call:
    """One call to a route: its exchange, what the path said, and the headers that every answer to it has.

    `request_id` is the `x-request-id` that is answered (contract section 1.5).
    """

    exchange: Exchange
    request_id: str
    parameters: Mapping[str, str]
    own_headers: tuple[Header, ...]

    @property
    def headers(self) -> Mapping[str, str]:
        return self.exchange.headers

    @property
    def query(self) -> dict[str, str]:
        return parsed_query(self.exchange.query_string)

    @property
    def caller(self) -> Caller:
        return Caller.of(self.exchange.headers, self.request_id)

    def start(self, status: int, *headers: Header) -> None:
        """Begins a streamed answer."""
        self.exchange.start(status, (*headers, *self.own_headers))


def parsed_query(query_string: bytes) -> dict[str, str]:
    """Query parameters; of a repeated one, the last."""
    if not query_string:
        return {}
    from urllib.parse import parse_qsl

    return dict(parse_qsl(query_string.decode("latin-1"), keep_blank_values=True))


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request to a handler of invocations, with its whole body unless the handler asked for `stream`.

    Header names are in lower case; a repeated header is joined by ", ". `path_parameters` holds what the
    route took from the path; `request_id` is the value of the `x-request-id` answered.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    query_string: bytes = b""
    path_parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    @property
    def query(self) -> dict[str, str]:
        """Query parameters; of a repeated one, the last."""
        return parsed_query(self.query_string)

    def text(self) -> str:
        """The body as UTF-8, broken bytes replaced."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Raises ValueError when the body is not JSON."""
        return jsons.decode(self.body)


BodyStream = AsyncGenerator[bytes, None]
"""What a handler gets that names `stream`: the body in pieces as they arrive."""


@dataclass(frozen=True, slots=True)
class Response:
    """What an invocations handler returns to choose status, headers or media type.

    `body` is str, bytes, a value to send as JSON, or an iterator (sync or async) of str and bytes to stream.
    """

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None
