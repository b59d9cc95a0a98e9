"""The uncompressed tar of a layer as tarfile reads it: forward only, hashed and bounded on the way."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator

from cupola.images.decompress import LayerError

_MAX_HEADER_BYTES = 1024**2


class TarStream:
    """A file object over `pieces`, at most `max_bytes` in all."""

    def __init__(self, pieces: Iterator[bytes], max_bytes: int) -> None:
        self._pieces = pieces
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._piece = memoryview(b"")
        self._position = 0
        self.size = 0
        """Bytes taken from `pieces` so far."""

    @property
    def digest(self) -> str:
        """The diff id, once everything is read."""
        return "sha256:" + self._digest.hexdigest()

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        """Skip forward. A tar whose headers lead backwards is damaged."""
        if position < self._position:
            raise LayerError("its headers are damaged")
        for _ in self.data(position - self._position):
            continue

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, fewer only at the end: one header, of bounded size."""
        if size <= len(self._piece):
            return bytes(self._take(size))
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise LayerError(f"one of its headers is larger than {_MAX_HEADER_BYTES} bytes")
        content = bytearray()
        while len(content) < size and self._fill():
            content += self._take(size - len(content))
        return bytes(content)

    def data(self, size: int) -> Iterator[memoryview]:
        """Exactly `size` bytes, in pieces. Raises LayerError when there are fewer."""
        while size > 0:
            if not self._fill():
                raise LayerError("it is cut off in the middle of a file")
            piece = self._take(size)
            size -= len(piece)
            yield piece

    def drain(self) -> None:
        """Read what follows the end of the archive, so that the digest covers it."""
        while self._fill():
            self._take(len(self._piece))

    def _take(self, size: int) -> memoryview:
        if size < 0:
            raise LayerError("its headers are damaged")
        taken = self._piece[:size]
        self._piece = self._piece[size:]
        self._position += len(taken)
        return taken

    def _fill(self) -> bool:
        if not self._piece:
            piece = next(self._pieces, b"")
            self.size += len(piece)
            if self.size > self._max_bytes:
                raise LayerError(f"it unpacks to more than the {self._max_bytes} bytes allowed")
            self._digest.update(piece)
            self._piece = memoryview(piece)
        return bool(self._piece)


def members(stream: TarStream) -> Iterator[tarfile.TarInfo]:
    """The entries of the archive, each to be dealt with before the next is asked for. Raises LayerError."""
    try:
        archive = tarfile.TarFile(
            fileobj=stream,  # type: ignore[arg-type]
            mode="r",
            encoding="utf-8",
            errors="surrogateescape",
        )
        while (member := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # else every entry of the layer stays in memory
            yield member
    except LayerError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, IndexError) as error:
        raise LayerError(f"it is not a valid tar archive ({error})") from error
