"""The events of a resilient response in a file, so that the next process can go on where this one ended.

An event is shown to nobody before it is in the file: what a client has seen is what is replayed. The file holds the
events as they are streamed; it survives the death of the process, and is removed ten minutes after its last event.
"""

import asyncio
import logging
import os
import time
from pathlib import Path

from cupola_agent import ids
from cupola_agent.responses.log import EventLog, event_frame
from cupola_agent.responses.replays import SECONDS

_SUFFIX = ".events"
_MAX_BYTES = 256 * 1024 * 1024

logger = logging.getLogger("cupola_agent")


class Journals:
    """The files of all responses, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, response_id: str) -> "JournaledLog":
        """The log of a response with the events that are in its file."""
        path = self._path(response_id)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = JournaledLog(path)
        for frame in _frames(path, repair=True):
            log.add_frame(frame)
        return log

    def read(self, response_id: str) -> EventLog | None:
        """The events of a response that has ended, while its file is there."""
        if not ids.is_safe_id(response_id):
            return None
        path = self._path(response_id)
        try:
            if path.stat().st_mtime < time.time() - SECONDS:
                return None
        except FileNotFoundError:
            return None
        log = EventLog()
        for frame in _frames(path, repair=False):
            log.add_frame(frame)
        log.close()
        return log

    def remove(self, response_id: str) -> None:
        if ids.is_safe_id(response_id):
            self._path(response_id).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes files whose last event is too old to be replayed."""
        oldest = time.time() - SECONDS
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:
                continue  # another process was faster

    def _path(self, response_id: str) -> Path:
        if not ids.is_safe_id(response_id):
            raise ValueError(f"not an id for a file: {response_id!r}")
        return self._folder / f"{response_id}{_SUFFIX}"


class JournaledLog(EventLog):
    """Events that are written to a file before anybody reads them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._unwritten: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None

    def append(self, kind: str, data: bytes) -> None:
        self._unwritten.append(event_frame(kind, data))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())

    async def written(self) -> None:
        """Waits until every event is in the file."""
        while self._writing is not None:
            await asyncio.shield(self._writing)

    async def _write_all(self) -> None:
        try:
            while self._unwritten:
                frames, self._unwritten = self._unwritten, []
                try:
                    await asyncio.to_thread(_append, self._path, b"".join(frames))
                except OSError:
                    # Those who read now are worth more than those who might after a crash.
                    logger.exception("events could not be written to %s", self._path)
                for frame in frames:
                    self.add_frame(frame)
        finally:
            self._writing = None


def _append(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _frames(path: Path, *, repair: bool) -> list[bytes]:
    """The whole events of a file. A broken last one, of a process that was killed, is dropped, by `repair` for good."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return []
    whole = data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0
    if repair and whole < len(data):
        logger.warning("the last event in %s was not whole and is dropped", path.name)
        os.truncate(path, whole)
    return [frame + b"\n\n" for frame in data[:whole].split(b"\n\n")[:-1]]
