"""The part of the node that threads of the server wait for: sockets into sandboxes, thawing, and files."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cupola.domain.errors import CupolaError
from cupola.node import messages as wire
from cupola.node.answers import describe_failure, encode_answer
from cupola.node.frames import ConnectionEnded, Lane
from cupola.sandbox.base import Driver, Sandbox
from cupola.sessions.file_transfer import Upload
from cupola.sessions.volumes import LocalVolumes

logger = logging.getLogger(__name__)

MOST_UPLOADS = 256
"""Uploads that are open at a time."""

Result = tuple[Any, list[int]]
"""What a request is answered with. The descriptors are closed when they were sent."""


def serve_lane(lane: Lane, folder: Path, service: QuickService) -> None:
    """Answer one request after the other until the server has gone. Blocks."""
    codec: wire.Codec[wire.QuickRequest] = wire.Codec(folder, wire.QuickRequest)
    try:
        while True:
            body, descriptors = lane.receive()
            for descriptor in descriptors:
                os.close(descriptor)
            _serve(lane, codec, codec.decode(body), service)
    except ConnectionEnded:
        return
    except Exception:
        logger.exception("a lane to the server cannot be served any more")
        lane.close()


def _serve(lane: Lane, codec: wire.Codec[wire.QuickRequest], request: wire.QuickRequest, service: QuickService) -> None:
    descriptors: list[int] = []
    try:
        result, descriptors = service.perform(request)
        answer = encode_answer(codec, 0, result)
    except Exception as error:
        answer = codec.encode(describe_failure(0, error))
    try:
        lane.send(answer, descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


class QuickService:
    """What the lanes ask for. Its methods are called by several threads at once."""

    def __init__(
        self,
        driver: Driver,
        sandboxes: Mapping[str, Sandbox],
        volumes: Mapping[wire.VolumeKind, LocalVolumes],
    ) -> None:
        self._driver = driver
        self._sandboxes = sandboxes
        self._volumes = volumes
        self._uploads: dict[int, Upload] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def perform(self, request: wire.QuickRequest) -> Result:
        """The result of a request. Raises what the operation raises."""
        match request:
            case wire.OpenSocket(sandbox=name):
                return None, self.open_socket(name)
            case wire.Thaw(sandbox=name):
                self._driver.thaw(name)
            case wire.ListeningPorts(sandbox=name):
                sandbox = self._sandboxes.get(name)
                return () if sandbox is None else sandbox.listening_ports(), []
            case wire.RemoveVolume(kind=kind, volume=name):
                self._volumes[kind].remove(name)
            case wire.RemoveOtherVolumes(kind=kind, keep=keep):
                self._volumes[kind].remove_all_but(frozenset(keep))
            case _:
                return self._perform_on_files(request)
        return None, []

    def open_socket(self, name: str) -> list[int]:
        """The descriptor of a socket into a sandbox, none when that has ended."""
        sandbox = self._sandboxes.get(name)
        try:
            return [] if sandbox is None else [sandbox.open_socket().detach()]
        except ConnectionRefusedError:
            return []

    def _perform_on_files(self, request: wire.FileRequest) -> Result:
        if isinstance(request, wire.FinishUpload):
            self._upload(request.upload).finish()
            return None, []
        if isinstance(request, wire.CloseUpload):
            with self._lock:
                upload = self._uploads.pop(request.upload, None)
            if upload is not None:
                upload.close()
            return None, []
        files = self._volumes["volumes"].files(request.volume)
        match request:
            case wire.CreateHome():
                files.create()
            case wire.Stat(path=path):
                return files.stat(path), []
            case wire.ListDirectory(path=path, page=page):
                return files.list_directory(path, page), []
            case wire.MakeDirectory(path=path):
                return files.make_directory(path), []
            case wire.Remove(path=path, recursive=recursive, seconds=seconds):
                return files.remove(path, recursive, seconds), []
            case wire.OpenUpload(path=path):
                return self._open_upload(files.upload(path))
            case wire.OpenDownload(path=path):
                download = files.download(path)
                try:
                    download.open()
                    return download.size, [os.dup(download.fileno())]
                finally:
                    download.close()
        return None, []

    def _open_upload(self, upload: Upload) -> Result:
        number = next(self._numbers)
        with self._lock:
            if len(self._uploads) >= MOST_UPLOADS:
                text = f"{MOST_UPLOADS} files are being uploaded already; try again in a moment."
                raise CupolaError("busy", text, status=503, retry_after=1)
            self._uploads[number] = upload
        try:
            upload.open()
            return number, [os.dup(upload.fileno())]
        except BaseException:
            with self._lock:
                del self._uploads[number]
            upload.close()
            raise

    def _upload(self, number: int) -> Upload:
        with self._lock:
            return self._uploads[number]

    def close(self) -> None:
        """Give up the uploads that are open. No thread may use the service any more."""
        for upload in self._uploads.values():
            upload.close()
        self._uploads.clear()
