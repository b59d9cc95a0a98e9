"""Archives as `docker save` writes them: a manifest.json that names a configuration and layers.

Such an archive has no manifest with a digest. One is made up from what identifies the image, the digests of
its configuration and of its uncompressed layers, so the same image has the same digest however it was saved.
"""

from __future__ import annotations

import asyncio
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cupola.images.failures import invalid_image, pull_failed
from cupola.images.files import Files
from cupola.images.layout import is_same_name
from cupola.images.manifest import (
    MAX_CONFIG_BYTES,
    MAX_MANIFEST_BYTES,
    Descriptor,
    Manifest,
    parse_configuration,
    parse_json,
    sha256,
)
from cupola.images.reference import Reference
from cupola.images.sources import Blob

MANIFEST = "manifest.json"


class _Entry(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Contents:
    manifest: bytes
    config: bytes
    layer_names: dict[str, str]
    """By diff id."""


def made_up_manifest(config_digest: str, diff_ids: Sequence[str]) -> bytes:
    """The manifest that stands for an image without one. Sizes are 0: they differ between archives."""
    layers = [
        {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": diff_id, "size": 0} for diff_id in diff_ids
    ]
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": 0}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    document = {"config": config, "layers": layers, "mediaType": media_type, "schemaVersion": 2}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


class DockerArchiveSource:
    """One image of an archive."""

    def __init__(self, files: Files, reference: Reference) -> None:
        self._files = files
        self._reference = reference
        self._loaded: _Contents | None = None

    async def resolve(self) -> str:
        return sha256((await self._contents()).manifest)

    async def manifest(self, digest: str) -> bytes:
        content = (await self._contents()).manifest
        if sha256(content) != digest:
            raise pull_failed(
                f"{self._reference} now is another image ({sha256(content)}) than the one asked for"
                f" ({digest}). Deploy it anew to use what is there now."
            )
        return content

    async def config(self, descriptor: Descriptor) -> bytes:
        return (await self._contents()).config

    async def layer(self, descriptor: Descriptor, destination: Path) -> Blob:
        contents = await self._contents()
        return await asyncio.to_thread(self._find, contents.layer_names[descriptor.digest])

    async def size(self, manifest: Manifest) -> int:
        contents = await self._contents()
        return await asyncio.to_thread(self._total_size, list(contents.layer_names.values()))

    async def close(self) -> None:
        await asyncio.to_thread(self._files.close)

    async def _contents(self) -> _Contents:
        if self._loaded is None:
            self._loaded = await asyncio.to_thread(self._load)
        return self._loaded

    def _load(self) -> _Contents:
        raw = self._read(MANIFEST, MAX_MANIFEST_BYTES)
        entry = self._select(parse_json(raw, tuple[_Entry, ...], f"{self._files.where}/{MANIFEST}"))
        config = self._read(posixpath.normpath(entry.config), MAX_CONFIG_BYTES)
        diff_ids = parse_configuration(config, str(self._reference)).diff_ids
        if len(diff_ids) != len(entry.layers):
            raise invalid_image(
                f"{self._files.where} names {len(entry.layers)} layers, and its configuration"
                f" {len(diff_ids)}. Save the image again."
            )
        return _Contents(
            made_up_manifest(sha256(config), diff_ids), config, dict(zip(diff_ids, entry.layers, strict=True))
        )

    def _select(self, entries: Sequence[_Entry]) -> _Entry:
        names = [name for entry in entries for name in entry.repo_tags or ()]
        wanted = self._reference
        if wanted.tag is None:
            if len(entries) == 1:
                return entries[0]
            raise invalid_image(
                f"{self._files.where} holds {len(entries)} images: {', '.join(names) or 'without names'}."
                " Add the name of one to the reference."
            )
        for entry in entries:
            if any(is_same_name(name, wanted) for name in entry.repo_tags or ()):
                return entry
        raise invalid_image(
            f"{self._files.where} holds no image called {wanted.name or wanted.tag}; it holds:"
            f" {', '.join(names) or '-'}."
        )

    def _total_size(self, names: Sequence[str]) -> int:
        total = 0
        for name in names:
            blob = self._find(name)
            blob.file.close()
            total += blob.size
        return total

    def _read(self, name: str, limit: int) -> bytes:
        blob = self._find(name)
        with blob.file:
            return blob.read(limit, f"{self._files.where}/{name}")

    def _find(self, name: str) -> Blob:
        blob = self._files.find(posixpath.normpath(name))
        if blob is None:
            raise invalid_image(f"{self._files.where} holds no {name!r}. Save the image again.")
        return blob
