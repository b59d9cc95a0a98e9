"""The uncompressed bytes of a layer, however it is compressed: gzip, zstd, or not at all.

The first bytes decide, not the media type. Every piece is of bounded size, whatever the ratio.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, cast

import zstandard

_PIECE_BYTES = 1024**2
_INPUT_BYTES = 256 * 1024
_MAX_ZSTD_WINDOW = 128 * 1024**2
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"


class LayerError(ValueError):
    """The layer is not what it should be; the message continues "The layer ...:"."""


class BlobReader:
    """`size` bytes of an open file from `offset` on. Needs no file position of its own, so it may share the
    file.
    """

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._left = size

    def read(self, size: int = -1) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        piece = os.pread(self._descriptor, wanted, self._offset)
        if wanted and not piece:
            raise LayerError("it is cut off")
        self._offset += len(piece)
        self._left -= len(piece)
        return piece

    def pieces(self) -> Iterator[bytes]:
        while piece := self.read(_INPUT_BYTES):
            yield piece


def decompressed(descriptor: int, offset: int, size: int) -> Iterator[bytes]:
    """The uncompressed content, in pieces of at most 1 MiB. Raises LayerError."""
    magic = os.pread(descriptor, 4, offset)
    blob = BlobReader(descriptor, offset, size)
    if magic.startswith(_GZIP_MAGIC):
        return _gunzip(blob)
    if magic == _ZSTD_MAGIC or magic[1:] == _ZSTD_SKIPPABLE_MAGIC:
        return _unzstd(blob)
    return blob.pieces()


def _gunzip(blob: BlobReader) -> Iterator[bytes]:
    """All members of a gzip file (RFC 1952 section 2.2), and zeros after them."""
    inflater = zlib.decompressobj(wbits=31)
    try:
        for piece in blob.pieces():
            while piece:
                if inflater.eof:
                    inflater = zlib.decompressobj(wbits=31)
                if output := inflater.decompress(piece, _PIECE_BYTES):
                    yield output
                piece = inflater.unused_data.lstrip(b"\0") if inflater.eof else inflater.unconsumed_tail
        while not inflater.eof:
            output = inflater.decompress(b"", _PIECE_BYTES)
            if not output:
                raise LayerError("its gzip data is cut off")
            yield output
    except zlib.error as error:
        raise LayerError(f"its gzip data is damaged ({error})") from error


def _unzstd(blob: BlobReader) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)
    try:
        with decompressor.stream_reader(
            cast("BinaryIO", blob), read_size=_INPUT_BYTES, read_across_frames=True
        ) as reader:
            while output := reader.read(_PIECE_BYTES):
                yield output
    except zstandard.ZstdError as error:
        raise LayerError(f"its zstd data is damaged ({error})") from error
