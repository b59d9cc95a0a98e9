"""What sandboxes print: split into lines, stamped, kept in bounded files, followed live.

A line of a log file is one JSON object `{"timestamp", "stream", "message"}`, the frame of the log stream (wire contract,
section 4.5). JSON escapes everything that could play tricks on a terminal or forge another line.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path

logger = logging.getLogger(__name__)

LINE_LIMIT = 16 * 1024
"""Bytes after which a line is cut into several."""
FILE_LIMIT = 4 * 1024 * 1024
"""Bytes of a log file before it becomes the older of two."""
TAIL_LINES = 50
FOLLOWER_BACKLOG = 10_000
"""Entries that wait for a slow follower before the oldest are dropped."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LineSplitter:
    """Cuts the bytes of several streams into lines of text."""

    def __init__(self) -> None:
        self._partial: dict[str, bytes] = {}

    def feed(self, stream: str, data: bytes) -> list[str]:
        """The lines that `data` completes, without their ends."""
        *ended, rest = (self._partial.get(stream, b"") + data).split(b"\n")
        lines = [line[at : at + LINE_LIMIT] for line in ended for at in range(0, max(1, len(line)), LINE_LIMIT)]
        while len(rest) > LINE_LIMIT:
            lines.append(rest[:LINE_LIMIT])
            rest = rest[LINE_LIMIT:]
        self._partial[stream] = rest
        return [line.rstrip(b"\r").decode(errors="replace") for line in lines]

    def rest(self) -> list[tuple[str, str]]:
        """What is left without an end, by stream."""
        left = [(stream, data.decode(errors="replace")) for stream, data in self._partial.items() if data]
        self._partial.clear()
        return left


class SessionLog:
    """The log of one session: a sink for its sandboxes' output that outlives them."""

    def __init__(self, directory: Path, clock: Callable[[], str] = _now) -> None:
        self._path = directory / "console.jsonl"
        self._older = directory / "console.1.jsonl"
        self._clock = clock
        self._splitter = LineSplitter()
        self._followers: set[asyncio.Queue[str | None]] = set()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = self._path.open("ab", buffering=0)
        self._size = self._path.stat().st_size

    def output(self, stream: str, data: bytes) -> None:
        """Take what a sandbox printed."""
        self._append([(stream, line) for line in self._splitter.feed(stream, data)])

    def status(self, message: str) -> None:
        """A message of the platform's own."""
        self._append([*self._splitter.rest(), ("status", message)])

    def tail(self) -> tuple[str, ...]:
        """The last lines of output since the log was opened, oldest first; one without an end counts as ended."""
        self._append(self._splitter.rest())
        return tuple(self._tail)

    def _append(self, lines: list[tuple[str, str]]) -> None:
        if not lines:
            return
        stamp = self._clock()
        entries = []
        for stream, message in lines:
            if stream != "status":
                self._tail.append(message)
            # Encoding the text alone takes a fifth of the time of encoding an object.
            entries.append(f'{{"timestamp": "{stamp}", "stream": "{stream}", "message": {json.dumps(message)}}}')
        self._write(("\n".join(entries) + "\n").encode())
        for follower in self._followers:
            for entry in entries:
                _offer(follower, entry)

    def _write(self, data: bytes) -> None:
        try:
            if self._size + len(data) > FILE_LIMIT:
                self._rotate()
            self._file.write(data)
        except OSError as error:
            # An agent must not fail, nor its output be held up, because the disk of its log is full.
            logger.warning("the log %s misses some lines: %s", self._path, error)
        self._size += len(data)

    def _rotate(self) -> None:
        self._path.replace(self._older)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
        self._size = 0

    async def follow(self) -> AsyncGenerator[str]:
        """Entries as they are written from now on, until the log is closed."""
        if self._file.closed:
            return
        queue: asyncio.Queue[str | None] = asyncio.Queue(FOLLOWER_BACKLOG)
        self._followers.add(queue)
        try:
            while (entry := await queue.get()) is not None:
                yield entry
        finally:
            self._followers.discard(queue)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._append(self._splitter.rest())
        self._file.close()
        for follower in self._followers:
            _offer(follower, None)


def _offer(follower: asyncio.Queue[str | None], entry: str | None) -> None:
    if follower.full():
        follower.get_nowait()
    follower.put_nowait(entry)


class OutputTail:
    """The last lines of a sandbox whose output is not kept."""

    def __init__(self) -> None:
        self._splitter = LineSplitter()
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)

    def output(self, stream: str, data: bytes) -> None:
        """Take what a sandbox printed."""
        self._lines.extend(self._splitter.feed(stream, data))

    def tail(self) -> tuple[str, ...]:
        """The last lines, oldest first."""
        self._lines.extend(text for _, text in self._splitter.rest())
        return tuple(self._lines)


def read_entries(directory: Path, last: int) -> list[str]:
    """The last entries of a session's log files, oldest first. Blocks."""
    entries: deque[str] = deque(maxlen=last)
    for name in ("console.1.jsonl", "console.jsonl"):
        path = directory / name
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                # A line that a full disk or a crash cut off is no entry.
                entries.extend(line.rstrip("\n") for line in file if line.endswith("}\n"))
    return list(entries)
