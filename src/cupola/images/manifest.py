"""The JSON documents of an image: index, manifest and configuration, checked before anything relies on them.

OCI image specification 1.1 and Docker's schema 2 manifests and manifest lists, which have the same shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from cupola.domain.errors import CupolaError
from cupola.images.failures import invalid_image
from cupola.images.model import ImageConfig
from cupola.images.reference import is_digest

MAX_MANIFEST_BYTES = 4 * 1024**2
MAX_CONFIG_BYTES = 8 * 1024**2
MAX_LAYERS = 500
"""As many as overlayfs stacks."""

PLATFORM = "linux/amd64"
_VARIANTS = (None, "", "v1", "v2", "v3")


class Platform(msgspec.Struct, frozen=True):
    """The platform for which an index offers a manifest."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A reference to content by digest: section "OCI Content Descriptors"."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not is_digest(self.digest):
            raise ValueError("a digest is not sha256: followed by 64 lower-case hexadecimal digits")
        if self.size < 0:
            raise ValueError("a size is negative")


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """Manifests to choose from."""

    manifests: tuple[Descriptor, ...]


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """One image: its configuration, and its layers from the lowest up."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Bytes of all layers as stored at the source."""
        return sum(layer.size for layer in self.layers)


class _Shape(msgspec.Struct, frozen=True, rename="camel"):
    schema_version: int = 2
    manifests: object = None
    layers: object = None


class _Execution(msgspec.Struct, frozen=True, rename="pascal"):
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    working_dir: str | None = None
    user: str | None = None
    stop_signal: str | None = None
    labels: dict[str, str] | None = None


class _RootFilesystem(msgspec.Struct, frozen=True):
    diff_ids: tuple[str, ...] = ()


class _Configuration(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    config: _Execution | None = None
    rootfs: _RootFilesystem = _RootFilesystem()


class Configuration(msgspec.Struct, frozen=True):
    """What an image's configuration says: how to run it, and the digests of its unpacked layers, lowest
    first.
    """

    config: ImageConfig
    diff_ids: tuple[str, ...]


_Document = TypeVar("_Document")


def sha256(content: bytes) -> str:
    """The digest of `content`."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def parse_json(raw: bytes, kind: type[_Document], what: str) -> _Document:
    """Decode `raw`, called `what` in the CupolaError `InvalidContainerImage` that is raised when it does not
    fit.
    """
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise invalid_image(f"{what} is not valid: {error}. Build and push the image again.") from error


def parse_document(raw: bytes, what: str) -> Index | Manifest:
    """Read a manifest or an index, told apart by what they contain.

    Raises CupolaError `InvalidContainerImage` also for what is not supported: schema 1, foreign and encrypted
    layers.
    """
    shape = parse_json(raw, _Shape, what)
    if shape.schema_version != 2:
        raise invalid_image(
            f"{what} has schema version {shape.schema_version}, which registries and Docker have given up."
            " Push the image again with a current version of Docker."
        )
    if shape.manifests is not None and shape.layers is not None:
        raise invalid_image(f"{what} is both an index and a manifest, so it is ambiguous. Push the image again.")
    if shape.manifests is not None:
        return parse_json(raw, Index, what)
    manifest = parse_json(raw, Manifest, what)
    if len(manifest.layers) > MAX_LAYERS:
        raise invalid_image(f"{what} has {len(manifest.layers)} layers; at most {MAX_LAYERS} can be stacked.")
    for layer in manifest.layers:
        if "foreign" in layer.media_type or "nondistributable" in layer.media_type:
            raise invalid_image(
                f"{what} has a foreign layer ({layer.digest}), whose content the registry does not hold."
                " Build the image from a base whose layers can all be distributed."
            )
        if "encrypted" in layer.media_type:
            raise invalid_image(f"{what} has an encrypted layer ({layer.digest}). Push the image unencrypted.")
    return manifest


def select_platform(manifests: Sequence[Descriptor], what: str) -> Descriptor:
    """The manifest for linux/amd64, of the variant that asks least of the processor.

    Raises CupolaError `InvalidContainerImage` naming the platforms found.
    """
    images = [manifest for manifest in manifests if not _is_attestation(manifest)]
    named = [(manifest.platform, manifest) for manifest in images if manifest.platform is not None]
    if not named and len(images) == 1:
        return images[0]
    suitable = [
        (_VARIANTS.index(platform.variant), manifest)
        for platform, manifest in named
        if f"{platform.os}/{platform.architecture}" == PLATFORM and platform.variant in _VARIANTS
    ]
    if suitable:
        return min(suitable, key=lambda entry: entry[0])[1]
    raise wrong_platform(what, ", ".join(sorted({str(platform) for platform, _ in named})) or "no named platform")


def parse_configuration(raw: bytes, what: str) -> Configuration:
    """Read an image configuration, and check that it is for linux/amd64.

    Raises CupolaError `InvalidContainerImage`.
    """
    document = parse_json(raw, _Configuration, f"The configuration of {what}")
    if not document.os and not document.architecture:
        raise invalid_image(f"{what} is not a container image: its configuration names no platform.")
    if f"{document.os}/{document.architecture}" != PLATFORM:
        raise wrong_platform(what, f"{document.os}/{document.architecture}")
    diff_ids = document.rootfs.diff_ids
    if not diff_ids or not all(is_digest(diff_id) for diff_id in diff_ids):
        raise invalid_image(f"The configuration of {what} does not name its layers (rootfs.diff_ids). Build it again.")
    execution = document.config or _Execution()
    config = ImageConfig(
        entrypoint=execution.entrypoint or (),
        command=execution.cmd or (),
        environment=tuple((name, value) for name, _, value in (entry.partition("=") for entry in execution.env or ())),
        working_directory="/" + (execution.working_dir or "").lstrip("/"),
        user=execution.user or "",
        stop_signal=execution.stop_signal or None,
        labels=tuple((execution.labels or {}).items()),
    )
    pairs = [text for pair in config.environment for text in pair]
    if any(
        "\0" in text for text in (*config.entrypoint, *config.command, *pairs, config.user, config.working_directory)
    ):
        raise invalid_image(f"The configuration of {what} contains NUL characters, so it cannot be run.")
    return Configuration(config, diff_ids)


def wrong_platform(what: str, found: str) -> CupolaError:
    """The refusal of an image that does not run here."""
    return invalid_image(
        f"{what} is not built for {PLATFORM} (found: {found}). Build it with `docker build --platform"
        f" {PLATFORM}`, push it, and try again."
    )


def _is_attestation(manifest: Descriptor) -> bool:
    """BuildKit puts attestations beside the images, for the platform "unknown/unknown"."""
    annotated = (manifest.annotations or {}).get("vnd.docker.reference.type") == "attestation-manifest"
    return annotated or (manifest.platform is not None and str(manifest.platform) == "unknown/unknown")
