"""The unpacked layers on disk, one directory for each diff id.

A layer is unpacked in a directory of its own and renamed when it is whole, so whatever has a layer's name is
whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import msgspec

from cupola.domain.errors import CupolaError
from cupola.images.extract import is_opaque
from cupola.images.failures import disk_full, invalid_image, pull_failed, writing_below
from cupola.images.sources import Blob, digest_mismatch
from cupola.images.unpack import Answer, Request

MAX_ENTRIES = 2_000_000
_SECONDS = 15 * 60
_TEMPORARY = ".tmp-"
_SIZE = ".size"


class LayerStore:
    """The layers below `directory`, which belongs to this process alone. Their user n is `first_id` + n of this machine."""

    def __init__(self, directory: Path, max_entries: int = MAX_ENTRIES, first_id: int = 0) -> None:
        self._directory = directory
        self._max_entries = max_entries
        self._first_id = first_id
        self._in_progress: set[str] = set()

    def path(self, diff_id: str) -> Path:
        return self._directory / diff_id.removeprefix("sha256:")

    def has(self, diff_id: str) -> bool:
        return self.path(diff_id).is_dir()

    def size(self, diff_id: str) -> int:
        """Bytes of the uncompressed tar of a layer that is there."""
        return int(self.path(diff_id).with_suffix(_SIZE).read_text())

    def hides_lower_layers(self, diff_id: str) -> bool:
        """Whether the layer starts the filesystem anew, which overlayfs does not heed at the root."""
        return is_opaque(self.path(diff_id))

    async def unpack(self, diff_id: str, blob: Blob, max_bytes: int) -> None:
        """Unpack `blob`, of at most `max_bytes` uncompressed, in a process of its own.

        Raises CupolaError `InvalidContainerImage` for content that is damaged or too large, and
        `ImagePullBackOff` for a full disk and for a process that fails.
        """
        if os.geteuid() != 0:
            raise pull_failed("Unpacking an image needs root (to change the root directory and owners). Run as root.")
        temporary = f"{_TEMPORARY}{secrets.token_hex(8)}"
        directory = self._directory / temporary
        self._in_progress.add(temporary)
        try:
            with writing_below(self._directory):
                directory.mkdir(parents=True)
                os.chown(directory, self._first_id, self._first_id)
                request = Request(
                    str(directory.absolute()),
                    blob.file.fileno(),
                    blob.offset,
                    blob.size,
                    blob.digest,
                    diff_id,
                    max_bytes,
                    self._max_entries,
                    self._first_id,
                )
                answer = await _run(request)
                self._check(answer, diff_id, blob)
                await asyncio.to_thread(self._write_size, diff_id, answer.size)
                # Not in a thread: a cancelled pull must not delete what is just being renamed.
                directory.rename(self.path(diff_id))
                await asyncio.to_thread(sync_directory, self._directory)
        finally:
            if directory.exists():
                await asyncio.to_thread(shutil.rmtree, directory)
            self._in_progress.discard(temporary)

    def _check(self, answer: Answer, diff_id: str, blob: Blob) -> None:
        if answer.outcome == "damaged":
            raise invalid_image(
                f"The layer {blob.digest or diff_id} cannot be unpacked: {answer.message}. Build it again."
            )
        if answer.outcome == "other-bytes":
            raise digest_mismatch(answer.message, "The image on this machine")
        if answer.outcome == "disk-full":
            raise disk_full(self._directory)
        if answer.outcome == "failed":
            raise pull_failed(f"The layer {diff_id} could not be unpacked into {self._directory}: {answer.message}.")

    def _write_size(self, diff_id: str, size: int) -> None:
        with self.path(diff_id).with_suffix(_SIZE).open("w") as file:
            file.write(str(size))
            file.flush()
            os.fsync(file.fileno())

    def discard(self, keep: Collection[str]) -> list[Path]:
        """Take every layer out of use that is not in `keep` (diff ids), and return what can be deleted for
        good.

        Does not wait for anything, so nothing else of this process happens in between.
        """
        if not self._directory.is_dir():
            return []
        kept = {diff_id.removeprefix("sha256:") for diff_id in keep}
        discarded = []
        for path in self._directory.iterdir():
            if path.name in self._in_progress or path.stem in kept:
                continue
            if path.name.startswith(_TEMPORARY) or path.suffix == _SIZE:
                discarded.append(path)
            else:
                # Renamed first: a layer that is only half deleted must not look whole.
                discarded.append(path.rename(self._directory / f"{_TEMPORARY}{secrets.token_hex(8)}"))
        return discarded


async def _run(request: Request) -> Answer:
    status, output, errors = await _unpack(request)
    if status == -signal.SIGINT:
        # A terminal's Ctrl-C has met it before it had a session of its own, and before it had done anything.
        status, output, errors = await _unpack(request)
    try:
        return msgspec.json.decode(output, type=Answer)
    except msgspec.MsgspecError as error:
        raise _crashed(status, errors, request) from error


async def _unpack(request: Request) -> tuple[int, bytes, bytes]:
    """The status of the process that unpacks, what it answered and what it had to say about errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-X", "utf8", "-m", "cupola.images.unpack", json.dumps(asdict(request))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=(request.descriptor,),
        env={},
        # Out of the reach of a terminal's Ctrl-C, which is the server's to handle.
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError as error:
        raise invalid_image(
            f"The layer {request.diff_id} was not unpacked within {_SECONDS // 60} minutes. Make it smaller."
        ) from error
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, output, errors


def _crashed(status: int, errors: bytes, request: Request) -> CupolaError:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    lines = errors.decode(errors="replace").strip().splitlines()
    detail = f": {lines[-1][:500]}" if lines else ""
    return pull_failed(f"The process that unpacks the layer {request.diff_id} {how}{detail}. Try again.")


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` survive a crash of the machine."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
