"""Bring the layers of one image to this machine and unpack them, several at once."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

from cupola.domain.errors import CupolaError
from cupola.images.failures import invalid_image, megabytes
from cupola.images.layers import LayerStore
from cupola.images.manifest import Configuration, Descriptor, Manifest
from cupola.images.sources import Source

Report = Callable[[str, str], None]

_LAYERS_AT_ONCE = 3
_UNPACKED_AT_ONCE = 2


class KeyedLocks:
    """One lock for each key, for as long as somebody holds or wants it."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def __getitem__(self, key: str) -> asyncio.Lock:
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        return lock


def pair_layers(manifest: Manifest, configuration: Configuration, what: str) -> dict[str, Descriptor]:
    """The blob of each layer by diff id, lowest first.

    A layer that occurs twice is kept where it occurs last: there it covers whatever it did before, and
    overlayfs takes no directory twice. Raises CupolaError `InvalidContainerImage`.
    """
    if len(manifest.layers) != len(configuration.diff_ids):
        raise invalid_image(
            f"{what} has {len(manifest.layers)} layers, and its configuration names"
            f" {len(configuration.diff_ids)}. Build and push it again."
        )
    pairs: dict[str, Descriptor] = {}
    for diff_id, descriptor in zip(configuration.diff_ids, manifest.layers, strict=True):
        pairs.pop(diff_id, None)
        pairs[diff_id] = descriptor
    return pairs


class LayerPull:
    """The layers of one image on their way from `source` through `workspace` into `layers`."""

    def __init__(
        self,
        source: Source,
        layers: LayerStore,
        locks: KeyedLocks,
        workspace: Path,
        max_bytes: int,
        report: Report,
    ) -> None:
        self._source = source
        self._layers = layers
        self._locks = locks
        self._workspace = workspace
        self._max_bytes = max_bytes
        self._report = report
        self._slots = asyncio.Semaphore(_LAYERS_AT_ONCE)
        self._unpack_slots = asyncio.Semaphore(_UNPACKED_AT_ONCE)
        self._unpacked_bytes = 0

    async def run(self, pairs: dict[str, Descriptor]) -> None:
        """Return when every layer is there. The first failure ends the others and is raised."""
        if sum(descriptor.size for descriptor in pairs.values()) > self._max_bytes:
            raise self._too_large()
        try:
            async with asyncio.TaskGroup() as group:
                for number, (diff_id, descriptor) in enumerate(pairs.items(), start=1):
                    group.create_task(self._pull_layer(diff_id, descriptor, f"layer {number} of {len(pairs)}"))
        except ExceptionGroup as failures:
            raise first_failure(failures.exceptions) from None

    async def _pull_layer(self, diff_id: str, descriptor: Descriptor, name: str) -> None:
        async with self._locks[diff_id], self._slots:
            if self._layers.has(diff_id):
                self._report("pull", f"{name.capitalize()} is already here")
            else:
                self._report(
                    "pull",
                    f"Fetching {name}" + (f" ({megabytes(descriptor.size)})" if descriptor.size else ""),
                )
                destination = self._workspace / diff_id.removeprefix("sha256:")
                blob = await self._source.layer(descriptor, destination)
                with blob.file:
                    async with self._unpack_slots:
                        self._report("unpack", f"Unpacking {name}")
                        await self._layers.unpack(diff_id, blob, self._max_bytes - self._unpacked_bytes)
                await asyncio.to_thread(destination.unlink, missing_ok=True)
            self._unpacked_bytes += self._layers.size(diff_id)
            if self._unpacked_bytes > self._max_bytes:
                raise self._too_large()

    def _too_large(self) -> CupolaError:
        return invalid_image(
            f"The image unpacks to more than the {megabytes(self._max_bytes)} allowed. Leave out what the"
            " agent does not need, for example with a smaller base image or a .dockerignore file."
        )


def first_failure(failures: Sequence[Exception]) -> Exception:
    """The failure that ended the others, out of the group it was wrapped into."""
    failure = failures[0]
    return first_failure(failure.exceptions) if isinstance(failure, ExceptionGroup) else failure
