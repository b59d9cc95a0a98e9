"""The request an agent reads and the response it may give."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cupola_agent import jsons


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request with its whole body.

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
        if not self.query_string:
            return {}
        from urllib.parse import parse_qsl

        return dict(parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True))

    def text(self) -> str:
        """The body as UTF-8, broken bytes replaced."""
        return self.body.decode(errors="replace")

    def json(self) -> Any:
        """Raises ValueError when the body is not JSON."""
        return jsons.decode(self.body)


@dataclass(frozen=True, slots=True)
class Response:
    """What an invocations handler returns to choose status, headers or media type.

    `body` is str, bytes, a value to send as JSON, or an iterator (sync or async) of str and bytes to stream.
    """

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str | None = None
