"""Names of a directory's entries, page by page, with bounded memory and without reading a large directory for each page."""

from __future__ import annotations

import heapq
import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from cupola.domain.errors import CupolaError
from cupola.sessions.file_names import UPLOAD_PREFIX

ENTRY_LIMIT = 1_000_000
"""Entries of the largest directory that is listed."""
READ_AHEAD = 5_000
"""Names that one reading of a directory finds: those of a page and of the pages after it."""
KEPT_DIRECTORIES = 16
"""Directories whose names are kept for the next page."""
SETTLED_AFTER = 1_000_000_000
"""Nanoseconds without a change after which the time of a directory's next change is sure to differ from that of its last."""


@dataclass(frozen=True)
class NamePage:
    """What part of a directory is wanted. `after` and `before` are names, which need not exist (any more)."""

    limit: int
    descending: bool = False
    after: bytes | None = None
    before: bytes | None = None

    def comes_after(self, name: bytes, other: bytes) -> bool:
        """Whether `name` is later than `other` in the page's order."""
        return name < other if self.descending else name > other

    def follows_start(self, name: bytes) -> bool:
        return self.after is None or self.comes_after(name, self.after)

    def precedes_end(self, name: bytes) -> bool:
        return self.before is None or self.comes_after(self.before, name)


@dataclass(frozen=True)
class _Reading:
    """The first names, in order, that follow `after` in a directory as it was at `changed_at`."""

    changed_at: int
    after: bytes | None
    names: tuple[bytes, ...]
    complete: bool


class DirectoryNames:
    """Reads names in order. What it keeps is used only while the directory is unchanged, so no page is out of date."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int, bool], _Reading] = {}
        self._lock = threading.Lock()

    def names(self, directory: int, page: NamePage) -> tuple[list[bytes], bool]:
        """The names of one page of an open directory, and whether more follow. Raises CupolaError (400) when the directory
        has too many entries."""
        status = os.fstat(directory)
        key = (status.st_dev, status.st_ino, page.descending)
        with self._lock:
            kept = self._kept.get(key)
        if kept is None or kept.changed_at != status.st_ctime_ns or not _reaches(kept, page):
            settled = time.time_ns() - status.st_ctime_ns > SETTLED_AFTER
            kept = _read(directory, page, status.st_ctime_ns)
            if settled:
                self._keep(key, kept)
        following = (name for name in kept.names if page.follows_start(name) and page.precedes_end(name))
        found = list(itertools.islice(following, page.limit + 1))
        return found[: page.limit], len(found) > page.limit

    def _keep(self, key: tuple[int, int, bool], reading: _Reading) -> None:
        with self._lock:
            self._kept.pop(key, None)
            self._kept[key] = reading
            while len(self._kept) > KEPT_DIRECTORIES:
                del self._kept[next(iter(self._kept))]


def _reaches(reading: _Reading, page: NamePage) -> bool:
    """Whether a reading has all names of a page, and the one after them."""
    if reading.after is not None and (page.after is None or page.comes_after(reading.after, page.after)):
        return False
    return reading.complete or sum(map(page.follows_start, reading.names)) > page.limit


def _read(directory: int, page: NamePage, changed_at: int) -> _Reading:
    names = (name for name in _entries(directory) if page.follows_start(name))
    choose = heapq.nlargest if page.descending else heapq.nsmallest
    wanted = max(READ_AHEAD, page.limit + 1)
    found = choose(wanted + 1, names)
    return _Reading(changed_at, page.after, tuple(found[:wanted]), len(found) <= wanted)


def _entries(directory: int) -> Iterator[bytes]:
    with os.scandir(directory) as entries:
        for number, entry in enumerate(entries):
            if number >= ENTRY_LIMIT:
                text = f"path: the directory has more than {ENTRY_LIMIT} entries, which are too many to be listed."
                raise CupolaError("bad_request", text, param="path")
            name = os.fsencode(entry.name)
            if not name.startswith(UPLOAD_PREFIX):
                yield name
