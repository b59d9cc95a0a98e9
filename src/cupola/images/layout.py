"""OCI image layouts, as a directory or inside an archive: OCI image specification 1.1, "OCI Image Layout"."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import msgspec

from cupola.domain.errors import CupolaError
from cupola.images.failures import invalid_image
from cupola.images.files import Files
from cupola.images.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Index,
    Manifest,
    parse_json,
)
from cupola.images.reference import Reference, parse_reference
from cupola.images.sources import Blob, resolve_platform, verified

INDEX = "index.json"
_REFERENCE_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


class LayoutSource:
    """One image of a layout."""

    def __init__(self, files: Files, reference: Reference) -> None:
        self._files = files
        self._reference = reference

    async def resolve(self) -> str:
        return await resolve_platform(self, str(self._reference))

    async def root(self) -> bytes:
        """An index of what the reference names, be it one manifest or several."""
        raw = await asyncio.to_thread(self._read, INDEX, MAX_MANIFEST_BYTES)
        index = parse_json(raw, Index, f"{self._files.where}/{INDEX}")
        named = [manifest for manifest in index.manifests if self._is_named(manifest.annotations or {})]
        names = sorted({name for manifest in index.manifests if (name := _name(manifest)) is not None})
        if not named:
            raise invalid_image(
                f"{self._files.where} holds no image called {self._reference.tag!r}; it holds:"
                f" {', '.join(names) or '-'}."
            )
        if len({_name(manifest) for manifest in named}) > 1:
            raise invalid_image(
                f"{self._files.where} holds several images: {', '.join(names)}. Add the name of one to the"
                f" reference, as in '{self._reference.transport}:{self._reference.path}:{names[0]}'."
            )
        return msgspec.json.encode({"schemaVersion": 2, "manifests": named})

    async def manifest(self, digest: str) -> bytes:
        return await self._blob(digest, MAX_MANIFEST_BYTES)

    async def config(self, descriptor: Descriptor) -> bytes:
        return await self._blob(descriptor.digest, MAX_CONFIG_BYTES)

    async def layer(self, descriptor: Descriptor, destination: Path) -> Blob:
        blob = await asyncio.to_thread(self._find, _blob_name(descriptor.digest))
        return replace(blob, digest=descriptor.digest)

    async def size(self, manifest: Manifest) -> int:
        return manifest.size

    async def close(self) -> None:
        await asyncio.to_thread(self._files.close)

    async def _blob(self, digest: str, limit: int) -> bytes:
        content = await asyncio.to_thread(self._read, _blob_name(digest), limit)
        return verified(content, digest, self._files.where)

    def _read(self, name: str, limit: int) -> bytes:
        blob = self._find(name)
        with blob.file:
            return blob.read(limit, f"{self._files.where}/{name}")

    def _find(self, name: str) -> Blob:
        blob = self._files.find(name)
        if blob is None:
            raise invalid_image(
                f"{self._files.where} holds no {name}. It is not a whole OCI image layout, or the image was"
                " replaced since; write it again, or deploy it anew."
            )
        return blob

    def _is_named(self, annotations: dict[str, str]) -> bool:
        if self._reference.tag is None:
            return True
        if annotations.get(_REFERENCE_NAME) in (self._reference.tag, self._reference.name or None):
            return True
        full_name = annotations.get(_CONTAINERD_NAME)
        return full_name is not None and is_same_name(full_name, self._reference)


def is_same_name(name: str, wanted: Reference) -> bool:
    """Whether `name`, as found in an archive, is the one asked for, however much of it is spelt out."""
    try:
        found = parse_reference(name)
    except CupolaError:
        return False
    if wanted.repository:
        return found.name == wanted.name
    if wanted.tag == found.tag:
        return True
    try:
        return found.name == parse_reference(wanted.tag or "").name
    except CupolaError:
        return False


def _name(manifest: Descriptor) -> str | None:
    annotations = manifest.annotations or {}
    return annotations.get(_REFERENCE_NAME) or annotations.get(_CONTAINERD_NAME)


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
