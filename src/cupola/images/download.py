"""Stream a blob to disk, hashed on the way, and carry on where a broken connection left it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO

import httpx2

from cupola.images.failures import pull_failed, writing_below
from cupola.images.manifest import Descriptor
from cupola.images.sources import digest_mismatch

_ATTEMPTS = 5
_FIRST_PAUSE = 0.2
_PIECE_BYTES = 1024**2

OpenStream = Callable[[Mapping[str, str]], AbstractAsyncContextManager[httpx2.Response]]


class _Partial:
    """What has arrived of a blob so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def append(self, piece: bytes) -> None:
        self._file.write(piece)
        self._digest.update(piece)
        self.size += len(piece)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._digest = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        return "sha256:" + self._digest.hexdigest()


async def download(open_stream: OpenStream, descriptor: Descriptor, destination: Path, where: str) -> None:
    """Write the blob to `destination`, and verify its size and digest.

    `open_stream` takes the headers of one more request. Connections that break are followed by requests for
    the rest (RFC 9110 section 14.2). Raises httpx2.HTTPError after the last of them, and CupolaError
    `ImagePullBackOff` for other bytes than promised and for a full disk.
    """
    with writing_below(destination.parent):
        file = await asyncio.to_thread(destination.open, "wb")
        with file:
            partial = _Partial(file)
            await _continue_until_whole(open_stream, descriptor, partial, where)
    if partial.size < descriptor.size:
        raise pull_failed(
            f"{where} ended the transfer of {descriptor.digest} after {partial.size} of {descriptor.size}"
            f" bytes, {_ATTEMPTS} times. Try again later."
        )
    if partial.digest != descriptor.digest:
        raise digest_mismatch(descriptor.digest, where)


async def _continue_until_whole(open_stream: OpenStream, descriptor: Descriptor, partial: _Partial, where: str) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        if attempt > 1:
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 2))
        try:
            await _continue(open_stream, descriptor, partial, where)
        except (httpx2.TransportError, httpx2.HTTPStatusError):
            if attempt == _ATTEMPTS:
                raise
        if partial.size == descriptor.size:
            return


async def _continue(open_stream: OpenStream, descriptor: Descriptor, partial: _Partial, where: str) -> None:
    headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
    async with open_stream(headers) as response:
        if partial.size and not _continues(response, partial.size):
            await asyncio.to_thread(partial.restart)
        async for piece in response.aiter_raw(_PIECE_BYTES):
            if partial.size + len(piece) > descriptor.size:
                raise digest_mismatch(descriptor.digest, where)
            await asyncio.to_thread(partial.append, piece)


def _continues(response: httpx2.Response, start: int) -> bool:
    return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
