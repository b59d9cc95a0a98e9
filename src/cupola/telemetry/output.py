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
"""Bytes after which a line is cut into several. Escaped, each can become six, so an entry has at most 96 KiB of text."""
FILE_LIMIT = 4 * 1024 * 1024
"""Bytes of a log file before it becomes the older of two."""
TAIL_LINES = 50
FOLLOWER_BACKLOG = 4 * 1024 * 1024
"""Bytes of entries that wait for a slow follower before the oldest are dropped."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class LineSplitter:
    """Cuts the bytes of several streams into lines of text."""

    def __init__(self) -> None:
        self._partial: dict[str, bytes] = {}

    def feed(self, stream: str, data: bytes) -> list[str]:
        """The lines that `data` completes, without their ends."""
        *ended, rest = (self._partial.get(stream, b"") + data).split(b"\n")
        lines = [piece for line in ended for piece in _pieces(line)]
        *full, self._partial[stream] = _pieces(rest)
        return [line.rstrip(b"\r").decode(errors="replace") for line in (*lines, *full)]

    def rest(self) -> list[tuple[str, str]]:
        """What is left without an end, by stream."""
        left = [(stream, data.decode(errors="replace")) for stream, data in self._partial.items() if data]
        self._partial.clear()
        return left


def _pieces(line: bytes) -> list[bytes]:
    """A line in pieces that are not too long, cut between characters."""
    pieces = []
    at = 0
    while len(line) - at > LINE_LIMIT:
        end = at + LINE_LIMIT
        # Bytes 0x80 to 0xBF go on with a character; one of UTF-8 has at most three of them.
        end -= next((back for back in range(4) if line[end - back] & 0xC0 != 0x80), 0)
        pieces.append(line[at:end])
        at = end
    return [*pieces, line[at:]]


class SessionLog:
    """The log of one session: a sink for its sandboxes' output that outlives them."""

    def __init__(self, directory: Path, clock: Callable[[], str] = _now) -> None:
        self._path = directory / "console.jsonl"
        self._older = directory / "console.1.jsonl"
        self._clock = clock
        self._splitter = LineSplitter()
        self._followers: set[_Follower] = set()
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = self._path.open("ab", buffering=0)
        self._size = self._path.stat().st_size

    def output(self, stream: str, data: bytes) -> None:
        """Take what a sandbox printed."""
        self._append([(stream, line) for line in self._splitter.feed(stream, data)])

    def status(self, message: str) -> None:
        """A message of the platform's own."""
        # A character beyond the first 65,536 becomes twelve bytes.
        self._append([*self._splitter.rest(), ("status", message[: LINE_LIMIT // 2])])

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
                follower.offer(entry)

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
        follower = _Follower()
        self._followers.add(follower)
        try:
            while (entry := await follower.next()) is not None:
                yield entry
        finally:
            self._followers.discard(follower)

    def close(self) -> None:
        """Write what is left and close the file."""
        self._append(self._splitter.rest())
        self._file.close()
        for follower in self._followers:
            follower.offer(None)


class _Follower:
    """Entries that wait for a reader; None is the end."""

    def __init__(self) -> None:
        self.size = 0
        self._entries: deque[str | None] = deque()
        self._filled = asyncio.Event()

    def offer(self, entry: str | None) -> None:
        self._entries.append(entry)
        self.size += len(entry or "")
        while self.size > FOLLOWER_BACKLOG:
            self.size -= len(self._entries.popleft() or "")
        self._filled.set()

    async def next(self) -> str | None:
        while not self._entries:
            self._filled.clear()
            await self._filled.wait()
        entry = self._entries.popleft()
        self.size -= len(entry or "")
        return entry


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


def status_entry(message: str) -> str:
    """A message of the platform's own, as an entry that is in no file."""
    return json.dumps({"timestamp": _now(), "stream": "status", "message": message})


def is_status(entry: str) -> bool:
    """Whether an entry is a message of the platform's own."""
    try:
        return bool(json.loads(entry)["stream"] == "status")
    except (ValueError, KeyError, TypeError):
        # Only a damaged disk makes such a line.
        return False


def read_entries(directory: Path, last: int, only_status: bool = False) -> list[str]:
    """The last entries of a session's log files, oldest first. Blocks."""
    entries: deque[str] = deque(maxlen=last)
    for name in ("console.1.jsonl", "console.jsonl"):
        path = directory / name
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                # A line that a full disk or a crash cut off is no entry.
                whole = (line.rstrip("\n") for line in file if line.endswith("}\n"))
                entries.extend(line for line in whole if not only_status or is_status(line))
    return list(entries)
