"""The node's volumes, for the server: it says what is to be done, and reads and writes files that the node has opened."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from cupola.node import messages as wire
from cupola.node.client import Lanes
from cupola.sessions.file_listing import NamePage
from cupola.sessions.file_transfer import UPLOAD_LIMIT, too_large, write_all
from cupola.sessions.file_tree import Names, explained
from cupola.sessions.files import FileEntry


class NodeVolumes:
    """Volumes of one kind, which the node has in `directory`. The methods are those of `Volumes`."""

    def __init__(self, lanes: Lanes, kind: wire.VolumeKind, directory: Path) -> None:
        self._lanes = lanes
        self._kind: wire.VolumeKind = kind
        self._directory = directory

    def path(self, name: str) -> Path:
        return self._directory / name

    def files(self, name: str) -> NodeFiles:
        return NodeFiles(self._lanes, name)

    def remove(self, name: str) -> None:
        self._lanes.ask(wire.RemoveVolume(self._kind, name), None)

    def remove_all_but(self, names: Collection[str]) -> None:
        self._lanes.ask(wire.RemoveOtherVolumes(self._kind, tuple(names)), None)


class NodeFiles:
    """The files of one session. The methods are those of `Files`."""

    def __init__(self, lanes: Lanes, volume: str) -> None:
        self._lanes = lanes
        self._volume = volume

    def create(self) -> None:
        self._lanes.ask(wire.CreateHome(self._volume), None)

    def stat(self, path: Names) -> FileEntry:
        entry: FileEntry = self._lanes.ask(wire.Stat(self._volume, path), FileEntry)[0]
        return entry

    def list_directory(self, path: Names, page: NamePage) -> tuple[tuple[FileEntry, ...], str | None]:
        kind = tuple[tuple[FileEntry, ...], str | None]
        listed: tuple[tuple[FileEntry, ...], str | None]
        listed = self._lanes.ask(wire.ListDirectory(self._volume, path, page), kind)[0]
        return listed

    def make_directory(self, path: Names) -> bool:
        made: bool = self._lanes.ask(wire.MakeDirectory(self._volume, path), bool)[0]
        return made

    def remove(self, path: Names, recursive: bool, seconds: float) -> bool:
        removed: bool = self._lanes.ask(wire.Remove(self._volume, path, recursive, seconds), bool)[0]
        return removed

    def upload(self, path: Names) -> NodeUpload:
        return NodeUpload(self._lanes, self._volume, path)

    def download(self, path: Names) -> NodeDownload:
        return NodeDownload(self._lanes, self._volume, path)


class NodeUpload:
    """A file on its way in; the node made it and puts it at its place."""

    def __init__(self, lanes: Lanes, volume: str, path: Names) -> None:
        self.size = 0
        self._lanes = lanes
        self._volume = volume
        self._path = path
        self._number: int | None = None
        self._file = -1

    def open(self) -> None:
        self._number, (self._file,) = self._lanes.ask(wire.OpenUpload(self._volume, self._path), int)

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > UPLOAD_LIMIT:
            raise too_large()
        with explained(self._path):
            write_all(self._file, data)

    def finish(self) -> None:
        if self._number is None:
            raise RuntimeError("this upload is not open")
        self._lanes.ask(wire.FinishUpload(self._number), None)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self._number is not None:
            self._lanes.ask(wire.CloseUpload(self._number), None)
            self._number = None


class NodeDownload:
    """A file on its way out, which the node has opened."""

    def __init__(self, lanes: Lanes, volume: str, path: Names) -> None:
        self.size = 0
        self._lanes = lanes
        self._volume = volume
        self._path = path
        self._file = -1

    def open(self) -> None:
        self.size, (self._file,) = self._lanes.ask(wire.OpenDownload(self._volume, self._path), int)

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._file, size, offset)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1
