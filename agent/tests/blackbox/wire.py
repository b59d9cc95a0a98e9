"""Talks HTTP to an agent and shows what came over the wire, a server-sent event at a time."""

from __future__ import annotations

import http.client
import json
import secrets
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

TIMEOUT = 15
"""Seconds a test waits for bytes before it fails."""
TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete", "error"})
_ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: str = "caresp", partition: str | None = None) -> str:
    """An identifier of contract section 4.2 that nobody has seen."""
    entropy = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return f"{prefix}_{partition or new_partition()}{entropy}"


def new_partition() -> str:
    return f"{secrets.token_hex(8)}00"


def partition_of(identifier: str) -> str:
    return identifier.partition("_")[2][:18]


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    kind: str
    data: Any

    @property
    def response(self) -> Any:
        return self.data["response"]


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Event]:
        """The events of the body. Fails where it is not framed as contract section 4.5 says."""
        frames = self.body.decode().split("\n\n")
        assert frames.pop() == ""
        return [event for event in map(parse_frame, frames) if event]


def parse_frame(frame: str) -> Event | None:
    """The event of a frame without its blank line; None for a comment."""
    if frame.startswith(":"):
        return None
    kind, data = frame.split("\n")
    assert kind.startswith("event: "), frame
    assert data.startswith("data: "), frame
    event = Event(kind.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
    assert event.data["type"] == event.kind
    return event


class Exchange:
    """A request that was sent, and its answer as it comes in."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection, whether the answer is whole or not."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    @property
    def response(self) -> http.client.HTTPResponse:
        """Waits for the head of the answer."""
        if self._response is None:
            self._response = self._connection.getresponse()
        return self._response

    @property
    def headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.response.getheaders()}

    def answer(self) -> Answer:
        """Waits for all that is still to come."""
        body = self.response.read()
        return Answer(self.response.status, self.headers, body)

    def frames(self) -> Iterator[str]:
        """The frames as they arrive, comments too, without their blank lines, until the stream ends."""
        lines: list[str] = []
        while line := self.response.readline():
            if line == b"\n":
                yield "\n".join(lines)
                lines = []
            else:
                lines.append(line.decode().removesuffix("\n"))
        assert not lines, f"the stream broke off within {lines}"

    def events(self) -> Iterator[Event]:
        return (event for event in map(parse_frame, self.frames()) if event)


class Client:
    """Calls the agent at a port of this machine; `headers` go with every request."""

    def __init__(self, port: int, headers: Mapping[str, str] | None = None) -> None:
        self.port = port
        self._headers = dict(headers or {})

    def with_headers(self, headers: Mapping[str, str]) -> Client:
        return Client(self.port, {**self._headers, **headers})

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT,
    ) -> Exchange:
        """Sends a request and does not wait for its answer. `body` is JSON, or bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"content-type": "application/json"} if content is not None else {}
        try:
            connection.request(method, path, content, {**given, **self._headers, **(headers or {})})
        except BaseException:
            connection.close()
            raise
        return Exchange(connection)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        with self.send(method, path, body, headers) as exchange:
            return exchange.answer()

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def post(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        return self.call("POST", path, body, headers)

    def delete(self, path: str) -> Answer:
        return self.call("DELETE", path)
