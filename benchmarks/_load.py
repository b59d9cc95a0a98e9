"""A load generator for HTTP servers on this machine: raw sockets and requests made beforehand, in the calling process.

It looks at each answer no more than it must to know that it is whole and right. A stream is checked once the clock has
stopped.
"""

from __future__ import annotations

import json
import re
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

DEADLINE = 30.0
"""Seconds within which a server says something."""

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"0\r\n\r\n"
_TIME_IN_DELTA = re.compile(rb'"delta": ?"(\d+) "')


class Broken(Exception):
    """A server did not answer as it should."""

    def __init__(self, problem: str, received: bytes) -> None:
        super().__init__(f"{problem}; received {len(received)} bytes, at the end {received[-2000:]!r}")


@dataclass(frozen=True)
class Load:
    """How many requests were answered, or events received, in how many seconds."""

    count: int
    seconds: float


@dataclass(frozen=True)
class Streamed:
    """Complete streams. `size` is the bytes of all their events, without the framing of HTTP."""

    streams: int
    events: int
    size: int
    seconds: float


@dataclass
class _Connection:
    socket: socket.socket
    request: bytes
    text: bytes
    received: bytes = b""


def request(body: object) -> bytes:
    content = json.dumps(body).encode()
    return (
        b"POST /responses HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(content), content)
    )


def ready(port: int) -> bool:
    """Whether GET /readiness is answered with 200 now."""
    try:
        with socket.create_connection(("127.0.0.1", port), DEADLINE) as connection:
            connection.sendall(b"GET /readiness HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            return connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


def answers(port: int, connections: int, seconds: float, *, store: bool) -> Load:
    """Ask on so many connections at once, again as soon as answered. Each has a text of its own, which must come back.

    Raises Broken or OSError.
    """
    with ExitStack() as opened:
        poll = opened.enter_context(closing(select.epoll()))
        asking: dict[int, _Connection] = {}
        for number in range(connections):
            text = f"text {number:06}"
            body = {"model": "m", "input": text, **({} if store else {"store": False})}
            connection = _Connection(opened.enter_context(_connect(port)), request(body), text.encode())
            asking[connection.socket.fileno()] = connection
            poll.register(connection.socket, select.EPOLLIN)
        began = now = time.perf_counter()
        for connection in asking.values():
            connection.socket.sendall(connection.request)
        answered, unanswered = 0, connections
        while unanswered:
            for descriptor in _readable(poll, asking):
                connection = asking[descriptor]
                if not _is_answered(connection):
                    continue
                answered += 1
                now = time.perf_counter()
                if now - began < seconds:
                    connection.socket.sendall(connection.request)
                else:
                    unanswered -= 1
        return Load(answered, now - began)


def streams(port: int, at_once: int, deltas: int, seconds: float) -> Streamed:
    """Take so many streams of text deltas at once, and again until the time is over.

    Raises Broken or OSError, also when a stream is not complete.
    """
    body = request({"model": "m", "input": f"deltas {deltas}", "stream": True})
    text = "".join(f"word{number} " for number in range(deltas))
    total = Streamed(0, 0, 0, 0.0)
    while total.seconds < seconds:
        received, took = _wave(port, at_once, body)
        found = [_events(one, text, deltas) for one in received]
        total = Streamed(
            total.streams + at_once,
            total.events + sum(events for events, _ in found),
            total.size + sum(size for _, size in found),
            total.seconds + took,
        )
    return total


def delays(port: int, count: int) -> list[float]:
    """Seconds from when the handler yields a word that stands alone until it is read here."""
    found: list[float] = []
    received = b""
    with _connect(port) as connection:
        connection.sendall(request({"model": "m", "input": f"lone {count}", "stream": True}))
        while not received.endswith(_LAST_CHUNK):
            data = _receive(connection, [received])
            now = time.monotonic_ns()
            received += data
            yielded = _TIME_IN_DELTA.findall(received)
            found.extend((now - int(then)) / 1e9 for then in yielded[len(found) :])
    if len(found) != count:
        raise Broken(f"{len(found)} of {count} events in a stream", received)
    return found


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), DEADLINE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _receive(connection: socket.socket, earlier: Sequence[bytes]) -> bytes:
    try:
        data = connection.recv(65536)
    except OSError as error:
        raise Broken(str(error), b"".join(earlier)) from error
    if not data:
        raise Broken("the server closed the connection", b"".join(earlier))
    return data


def _readable(poll: select.epoll, asking: dict[int, _Connection]) -> Iterator[int]:
    """Read what is there, and tell on which connections."""
    found = poll.poll(DEADLINE)
    if not found:
        raise Broken(f"nothing for {DEADLINE:g} s", b"\n".join(one.received for one in asking.values()))
    for descriptor, _ in found:
        connection = asking[descriptor]
        connection.received += _receive(connection.socket, [connection.received])
        yield descriptor


def _is_answered(connection: _Connection) -> bool:
    received = connection.received
    head = received.find(b"\r\n\r\n")
    if head < 0:
        return False
    length = _LENGTH.search(received, 0, head)
    if not received.startswith(b"HTTP/1.1 200 ") or length is None:
        raise Broken("not an answer with status 200 and a length", received)
    if len(received) < head + 4 + int(length[1]):
        return False
    if connection.text not in received:
        raise Broken(f"an answer without {connection.text!r}", received)
    connection.received = b""
    return True


def _wave(port: int, at_once: int, body: bytes) -> tuple[Sequence[bytes], float]:
    """Streams at once until the last has ended, as they came, and the seconds that it took."""
    with ExitStack() as opened:
        poll = opened.enter_context(closing(select.epoll()))
        pieces: dict[int, list[bytes]] = {}
        tails: dict[int, bytes] = {}
        sockets: dict[int, socket.socket] = {}
        for _ in range(at_once):
            connection = opened.enter_context(_connect(port))
            sockets[connection.fileno()] = connection
            pieces[connection.fileno()] = []
            tails[connection.fileno()] = b""
            poll.register(connection, select.EPOLLIN)
        began = time.perf_counter()
        for connection in sockets.values():
            connection.sendall(body)
        streaming = at_once
        while streaming:
            found = poll.poll(DEADLINE)
            if not found:
                raise Broken(f"nothing for {DEADLINE:g} s in streams", b"\n".join(b"".join(p) for p in pieces.values()))
            for descriptor, _ in found:
                data = _receive(sockets[descriptor], pieces[descriptor])
                pieces[descriptor].append(data)
                tails[descriptor] = (tails[descriptor] + data[-len(_LAST_CHUNK) :])[-len(_LAST_CHUNK) :]
                if tails[descriptor] == _LAST_CHUNK:
                    streaming -= 1
        return [b"".join(one) for one in pieces.values()], time.perf_counter() - began


def _events(received: bytes, text: str, deltas: int) -> tuple[int, int]:
    """The number and bytes of the events of a stream. Raises Broken unless it has all, in order, and ends as it should."""
    head, _, content = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise Broken("not a stream", received)
    stream = b"".join(_unchunked(content))
    events = [json.loads(data) for data in re.findall(rb"^data: ?(.*)$", stream, re.MULTILINE)]
    said = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    if len(said) != deltas or "".join(said) != text:
        raise Broken(f"{len(said)} of {deltas} deltas in a stream", received)
    if [event["sequence_number"] for event in events] != list(range(len(events))):
        raise Broken("sequence numbers of a stream with gaps", received)
    if events[-1]["type"] != "response.completed":
        raise Broken("a stream that does not end with response.completed", received)
    return len(events), len(stream)


def _unchunked(content: bytes) -> Iterable[bytes]:
    position = 0
    while True:
        end = content.index(b"\r\n", position)
        size = int(content[position:end], 16)
        if size == 0:
            return
        yield content[end + 2 : end + 2 + size]
        position = end + 4 + size
