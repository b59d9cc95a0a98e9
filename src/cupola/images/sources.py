"""Where images come from: what every source can do, and the choice of the manifest for this platform."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cupola.domain.errors import CupolaError
from cupola.images.failures import invalid_image, pull_failed
from cupola.images.manifest import (
    Descriptor,
    Manifest,
    parse_configuration,
    parse_document,
    select_platform,
    sha256,
)

_MAX_NESTED_INDEXES = 4


@dataclass(frozen=True)
class Blob:
    """A stretch of an open file. Whoever receives one closes `file`.

    `digest` is what the bytes promise to hash to, or None when that has been verified or was never promised.
    """

    file: BinaryIO
    offset: int
    size: int
    digest: str | None = None

    def read(self, limit: int, what: str) -> bytes:
        """All bytes. Raises CupolaError `InvalidContainerImage` when they are more than `limit`."""
        if self.size > limit:
            raise invalid_image(f"{what} is larger than {limit} bytes.")
        return os.pread(self.file.fileno(), self.size, self.offset)


class Source(Protocol):
    """One image at the place where it was published. Every method raises CupolaError."""

    async def resolve(self) -> str:
        """The digest of the manifest for linux/amd64. Reads metadata only."""

    async def manifest(self, digest: str) -> bytes:
        """A manifest or index by digest, verified."""

    async def config(self, descriptor: Descriptor) -> bytes:
        """An image configuration, verified."""

    async def layer(self, descriptor: Descriptor, destination: Path) -> Blob:
        """A layer's blob. A source that is not on this machine writes it to `destination`."""

    async def size(self, manifest: Manifest) -> int:
        """Bytes of all layers as they are stored there."""

    async def close(self) -> None:
        """Release what was opened."""


class Published(Protocol):
    """A source whose manifests are published, so that one can be chosen among them."""

    async def root(self) -> bytes: ...

    async def manifest(self, digest: str) -> bytes: ...

    async def config(self, descriptor: Descriptor) -> bytes: ...


async def resolve_platform(source: Published, what: str) -> str:
    """The digest of the manifest for linux/amd64. Reads manifests and its configuration."""
    raw = await source.root()
    for _ in range(_MAX_NESTED_INDEXES):
        document = parse_document(raw, what)
        if isinstance(document, Manifest):
            parse_configuration(await source.config(document.config), what)
            return sha256(raw)
        raw = await source.manifest(select_platform(document.manifests, what).digest)
    raise invalid_image(f"{what} nests more than {_MAX_NESTED_INDEXES} indexes. Push the image again.")


def verified(content: bytes, digest: str, where: str) -> bytes:
    """`content`, if it hashes to `digest`; else CupolaError `ImagePullBackOff`."""
    if sha256(content) != digest:
        raise digest_mismatch(digest, where)
    return content


def digest_mismatch(digest: str, where: str) -> CupolaError:
    """The refusal of content that was damaged or replaced on its way."""
    return pull_failed(
        f"{where} sent other bytes than the digest {digest} promises. The content was damaged or replaced on"
        " its way; nothing of it was used. Try again, and push the image again if that does not help."
    )
