"""What overlayfs would show of an image's layers, as one tar for the engine's import.

Kernel documentation, "Overlay Filesystem": a character device 0/0 hides what is below it, a directory with the attribute
`trusted.overlay.opaque` hides what is below in it, directories of several layers are merged.
"""

# A few calls for each of thousands of files: pathlib would take longer than the kernel.
# ruff: noqa: PTH115

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

OPAQUE = "trusted.overlay.opaque"
PIECE = 512 * 1024
_KINDS = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}


def merged_tar(layers: Sequence[Path]) -> Iterator[bytes]:
    """The archive, in pieces of about half a MiB. `layers` are lowest first, and do not change meanwhile.

    Blocks between pieces. Raises OSError when something in a layer cannot be read.
    """
    buffer = bytearray()
    for chunk in _archive(layers):
        buffer += chunk
        if len(buffer) >= PIECE:
            yield bytes(buffer)
            buffer.clear()
    yield bytes(buffer)


def _archive(layers: Sequence[Path]) -> Iterator[bytes]:
    names: dict[tuple[int, int], str] = {}
    for name, path in merged(layers):
        status = os.lstat(path)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode))
        if kind is None:
            continue
        entry = tarfile.TarInfo(name)
        entry.type = kind
        entry.mode = stat.S_IMODE(status.st_mode)
        entry.uid, entry.gid, entry.mtime = status.st_uid, status.st_gid, int(status.st_mtime)
        if kind == tarfile.SYMTYPE:
            entry.linkname = os.readlink(path)
        elif kind == tarfile.REGTYPE:
            first = names.setdefault((status.st_dev, status.st_ino), name) if status.st_nlink > 1 else name
            if first == name:
                entry.size = status.st_size
            else:
                entry.type, entry.linkname = tarfile.LNKTYPE, first
        yield entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if entry.size:
            yield from _content(path, entry.size)
    yield bytes(2 * tarfile.BLOCKSIZE)


def merged(layers: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Each name that overlayfs would show, with the path of what it shows; a directory comes before what is in it."""
    pending = [(".", [os.fspath(layer) for layer in reversed(layers)])]
    while pending:
        name, directories = pending.pop()
        yield name, directories[0]
        subdirectories: dict[str, list[str]] = {}
        hidden: set[str] = set()
        for directory in directories:
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name in hidden:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        subdirectories.setdefault(entry.name, []).append(entry.path)
                        continue
                    hidden.add(entry.name)
                    if entry.name not in subdirectories and not _is_whiteout(entry):
                        yield f"{name}/{entry.name}", entry.path
            if _is_opaque(directory):
                break
        pending += [(f"{name}/{below}", paths) for below, paths in subdirectories.items()]


def _is_whiteout(entry: os.DirEntry[str]) -> bool:
    status = entry.stat(follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory: str) -> bool:
    return OPAQUE in os.listxattr(directory) and os.getxattr(directory, OPAQUE) == b"y"


def _content(path: str, size: int) -> Iterator[bytes]:
    """A file's bytes, filled up to whole blocks."""
    left = size
    with open(path, "rb", opener=_no_follow) as file:
        while left > 0:
            chunk = file.read(min(left, PIECE))
            if not chunk:
                raise OSError(f"{path} became shorter while it was read")
            left -= len(chunk)
            yield chunk
    yield bytes(-size % tarfile.BLOCKSIZE)


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)
