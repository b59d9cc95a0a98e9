"""An image that is ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
