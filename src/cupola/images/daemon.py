"""Images of the Docker engine on this machine, through its API: "Inspect an image" and "Export an image"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import httpx2
import msgspec

from cupola.images.archive import DockerArchiveSource, made_up_manifest
from cupola.images.failures import invalid_image, megabytes, pull_failed, writing_below
from cupola.images.files import TarFiles
from cupola.images.manifest import (
    MAX_MANIFEST_BYTES,
    PLATFORM,
    Descriptor,
    Manifest,
    parse_json,
    sha256,
    wrong_platform,
)
from cupola.images.reference import Reference
from cupola.images.sources import Blob

_TIMEOUT = httpx2.Timeout(300, connect=5)
_PIECE_BYTES = 1024**2


class _Layers(msgspec.Struct, frozen=True):
    layers: tuple[str, ...] = msgspec.field(default=(), name="Layers")


class _Inspection(msgspec.Struct, frozen=True):
    identity: str = msgspec.field(name="Id")
    root_filesystem: _Layers = msgspec.field(default=_Layers(), name="RootFS")
    architecture: str = msgspec.field(default="", name="Architecture")
    os: str = msgspec.field(default="", name="Os")
    descriptor: object = msgspec.field(default=None, name="Descriptor")


class DaemonSource:
    """One image of the engine. Its archive is written to `workspace` when more than its digest is wanted."""

    def __init__(self, socket: Path, reference: Reference, workspace: Path, max_bytes: int) -> None:
        self._socket = socket
        self._reference = reference
        self._workspace = workspace
        self._max_bytes = max_bytes
        self._opened: DockerArchiveSource | None = None

    async def resolve(self) -> str:
        inspection = parse_json(await self._inspect(), _Inspection, "The Docker engine's answer")
        # An engine that keeps images in containerd tells the manifest's digest, not the configuration's.
        if inspection.descriptor is not None or not inspection.root_filesystem.layers:
            return await (await self._archive()).resolve()
        platform = f"{inspection.os}/{inspection.architecture}"
        if platform != PLATFORM:
            raise wrong_platform(str(self._reference), platform)
        return sha256(made_up_manifest(inspection.identity, inspection.root_filesystem.layers))

    async def manifest(self, digest: str) -> bytes:
        return await (await self._archive()).manifest(digest)

    async def config(self, descriptor: Descriptor) -> bytes:
        return await (await self._archive()).config(descriptor)

    async def layer(self, descriptor: Descriptor, destination: Path) -> Blob:
        return await (await self._archive()).layer(descriptor, destination)

    async def size(self, manifest: Manifest) -> int:
        return await (await self._archive()).size(manifest)

    async def close(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    @property
    def _where(self) -> str:
        return f"The Docker engine at {self._socket}"

    @property
    def _path(self) -> str:
        return f"/images/{quote(self._reference.name, safe='/:')}"

    async def _archive(self) -> DockerArchiveSource:
        if self._opened is None:
            path = self._workspace / "docker-engine.tar"
            await self._export(path)
            files = await asyncio.to_thread(TarFiles, path, self._workspace, self._max_bytes)
            self._opened = DockerArchiveSource(files, replace(self._reference, path=str(path)))
        return self._opened

    async def _inspect(self) -> bytes:
        content = bytearray()
        async with self._get(f"{self._path}/json") as response:
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > MAX_MANIFEST_BYTES:
                    raise pull_failed(f"{self._where} answered with more than {MAX_MANIFEST_BYTES} bytes.")
        return bytes(content)

    async def _export(self, destination: Path) -> None:
        size = 0
        with writing_below(self._workspace):
            file = await asyncio.to_thread(destination.open, "wb")
            with file:
                async with self._get(f"{self._path}/get") as response:
                    async for piece in response.aiter_raw(_PIECE_BYTES):
                        size += len(piece)
                        if size > self._max_bytes:
                            raise invalid_image(
                                f"{self._reference} is larger than the {megabytes(self._max_bytes)} allowed."
                            )
                        await asyncio.to_thread(file.write, piece)

    @asynccontextmanager
    async def _get(self, path: str) -> AsyncIterator[httpx2.Response]:
        transport = httpx2.AsyncHTTPTransport(uds=str(self._socket))
        try:
            async with (
                httpx2.AsyncClient(transport=transport, timeout=_TIMEOUT, base_url="http://docker") as client,
                client.stream("GET", path) as response,
            ):
                if response.status_code == 404:
                    raise invalid_image(
                        f"{self._where} does not have {self._reference.name}. Build it there, or look for"
                        " its name with `docker images`."
                    )
                if response.status_code != 200:
                    raise pull_failed(
                        f"{self._where} answered HTTP {response.status_code} for {self._reference.name}."
                        " Look at its log."
                    )
                yield response
        except httpx2.ConnectError as error:
            raise pull_failed(
                f"{self._where} cannot be reached: {error}. Start it, or push the image to a registry instead."
            ) from error
        except httpx2.HTTPError as error:
            detail = str(error) or type(error).__name__
            raise pull_failed(f"{self._where} broke off its answer: {detail}. Try again.") from error
