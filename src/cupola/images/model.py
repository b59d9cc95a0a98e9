"""An image that is ready to run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cupola.images.reference import Reference


@dataclass(frozen=True)
class ImageConfig:
    """How the image wants to be run: the execution parameters of the OCI image configuration.

    `command` is appended to `entrypoint`. `working_directory` is absolute. `user` is `name`, `uid`,
    `name:group` or `uid:gid`; empty means root.
    """

    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    working_directory: str
    user: str
    stop_signal: str | None
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Image:
    """A verified image in the store.

    `digest` is that of the linux/amd64 manifest. `layers` are unpacked directories, lowest first, each at
    most once, to be used read-only as overlayfs lower directories. `size` counts the bytes of the layers as
    they were pulled.
    """

    digest: str
    layers: tuple[Path, ...]
    config: ImageConfig
    size: int


class Images(Protocol):
    """The images on this machine: what is pulled once is unpacked once, and is there without its source."""

    async def resolve(self, reference: Reference) -> str:
        """The digest of the manifest for linux/amd64 that `reference` now names. Reads metadata only.

        Raises CupolaError `InvalidContainerImage` or `ImagePullBackOff`.
        """

    async def pull(self, reference: Reference, digest: str, report: Callable[[str, str], None]) -> Image:
        """The image with the manifest `digest`, fetched from where `reference` says unless it is stored.

        `report` receives a step, "pull" or "unpack", and a message. Raises CupolaError `InvalidContainerImage` or
        `ImagePullBackOff`.
        """

    async def load(self, digest: str) -> Image | None:
        """The image with the manifest `digest`, if it is stored whole."""

    async def prune(self, keep: Collection[str]) -> None:
        """Remove every image whose digest is not in `keep`, unneeded layers, and leftovers of crashes.

        Images that are being pulled are kept.
        """
