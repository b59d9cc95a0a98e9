"""Files by name inside a directory or a tar archive, without ever leaving it."""

from __future__ import annotations

import gzip
import os
import posixpath
import stat
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol

from cupola.domain.errors import CupolaError
from cupola.images.failures import invalid_image, megabytes, writing_below
from cupola.images.sources import Blob

_GZIP_MAGIC = b"\x1f\x8b"
_MAX_MEMBERS = 100_000
_MAX_HEADER_BYTES = 1024**2
_MAX_LINKS = 8
_PIECE_BYTES = 1024**2


class Files(Protocol):
    """Names are relative and separated by slashes."""

    where: str

    def find(self, name: str) -> Blob | None:
        """The content of a regular file, or None when there is none of that name."""

    def close(self) -> None:
        """Release what was opened."""


class DirectoryFiles:
    """A directory. Symbolic links below it are not followed."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise cannot_open(path, "directory", error) from error

    def find(self, name: str) -> Blob | None:
        *parents, last = name.split("/")
        directory = os.dup(self._descriptor)
        try:
            for parent in parents:
                inner = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
                os.close(directory)
                directory = inner
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.fdopen(os.open(last, flags, dir_fd=directory), "rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise invalid_image(f"{self.where}/{name} cannot be read: {error.strerror}. Write it again.") from error
        finally:
            os.close(directory)
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            file.close()
            raise invalid_image(f"{self.where}/{name} is not a regular file. Write the image again.")
        return Blob(file, 0, status.st_size)

    def close(self) -> None:
        os.close(self._descriptor)


class TarFiles:
    """A tar archive, compressed with gzip or not. Links inside it are followed to members of it."""

    def __init__(self, path: Path, workspace: Path, max_bytes: int) -> None:
        self.where = str(path)
        self._file = _open_uncompressed(path, workspace, max_bytes)
        try:
            self._members = _list_members(self._file)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
            self._file.close()
            raise invalid_image(f"{path} is not a valid tar archive: {error}. Save the image again.") from error

    def find(self, name: str) -> Blob | None:
        for _ in range(_MAX_LINKS):
            member = self._members.get(name)
            if member is None:
                return None
            if member.isreg() and member.sparse is None:
                return self._blob(member)
            if member.issym():
                name = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            elif member.islnk():
                name = posixpath.normpath(member.linkname)
            else:
                return None
        return None

    def _blob(self, member: tarfile.TarInfo) -> Blob:
        descriptor = os.dup(self._file.fileno())
        if member.offset_data + member.size > os.fstat(descriptor).st_size:
            os.close(descriptor)
            raise invalid_image(f"{self.where} is cut off inside {member.name!r}. Save the image again.")
        return Blob(os.fdopen(descriptor, "rb"), member.offset_data, member.size)

    def close(self) -> None:
        self._file.close()


class _SmallReads:
    """What tarfile reads from: headers cannot make it read a large part of the archive into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError("a header is too large")
        return self._file.read(size)


def _open_uncompressed(path: Path, workspace: Path, max_bytes: int) -> BinaryIO:
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    except OSError as error:
        raise cannot_open(path, "archive", error) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise invalid_image(f"{path} is not a regular file. Give the path of an archive.")
    if os.pread(file.fileno(), 2, 0) != _GZIP_MAGIC:
        return file
    with file:
        return _gunzip(file, path, workspace / "archive.tar", max_bytes)


def _gunzip(file: BinaryIO, path: Path, destination: Path, max_bytes: int) -> BinaryIO:
    left = max_bytes
    with writing_below(destination.parent), destination.open("wb") as unpacked:
        try:
            with gzip.GzipFile(fileobj=file) as compressed:
                while piece := compressed.read(_PIECE_BYTES):
                    left -= len(piece)
                    if left < 0:
                        raise invalid_image(f"{path} unpacks to more than the {megabytes(max_bytes)} allowed.")
                    unpacked.write(piece)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise invalid_image(f"{path} is damaged: {error}. Save the image again.") from error
    return destination.open("rb")


def _list_members(file: BinaryIO) -> dict[str, tarfile.TarInfo]:
    """Members by normalised name; the last of a name counts."""
    members: dict[str, tarfile.TarInfo] = {}
    with tarfile.TarFile(fileobj=_SmallReads(file), mode="r", errorlevel=2) as archive:  # type: ignore[arg-type]
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]
            members[posixpath.normpath(member.name)] = member
            if len(members) > _MAX_MEMBERS:
                raise tarfile.ReadError(f"it has more than {_MAX_MEMBERS} members")
    return members


def cannot_open(path: Path, kind: str, error: OSError) -> CupolaError:
    """The refusal of a path that is missing or is something else."""
    return invalid_image(
        f"The {kind} {path} cannot be opened: {error.strerror}. Check the path on the machine that runs Cupola."
    )
