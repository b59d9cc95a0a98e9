"""The images on this machine: what is pulled once is unpacked once, and is there without its source."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import msgspec

from cupola.domain.errors import CupolaError
from cupola.images.daemon import DaemonSource
from cupola.images.failures import invalid_image, writing_below
from cupola.images.layers import LayerStore, sync_directory
from cupola.images.local import open_local
from cupola.images.manifest import Configuration, Manifest, parse_configuration, parse_document, sha256
from cupola.images.model import Image, Images
from cupola.images.pull import KeyedLocks, LayerPull, pair_layers
from cupola.images.reference import Reference, is_digest
from cupola.images.registry import Registries, RegistrySource
from cupola.images.sources import Source

DEFAULT_MAX_IMAGE_BYTES = 20 * 1024**3
_TEMPORARY = ".tmp-"


class _Record(msgspec.Struct, frozen=True):
    """What is kept of an image beside its layers: both documents, byte for byte."""

    manifest: bytes
    config: bytes
    size: int

    def parse(self, what: str) -> tuple[Manifest, Configuration]:
        """Raises CupolaError `InvalidContainerImage`."""
        document = parse_document(self.manifest, what)
        if not isinstance(document, Manifest):
            raise _not_a_manifest(what)
        return document, parse_configuration(self.config, what)


class ImageStore(Images):
    """Images below `directory`, which belongs to this process alone.

    `mirrors` maps a registry's host to the base URL that is read instead; `insecure_registries` are spoken to
    over plain HTTP; `docker_socket` is where `docker-daemon:` images come from. `max_image_bytes` bounds the
    uncompressed layers of one image.
    """

    def __init__(
        self,
        directory: Path,
        *,
        mirrors: Mapping[str, str] = {},
        insecure_registries: Collection[str] = (),
        docker_socket: Path = Path("/var/run/docker.sock"),
        max_image_bytes: int = DEFAULT_MAX_IMAGE_BYTES,
        first_id: int = 0,
    ) -> None:
        self._images = directory / "images"
        self._workspaces = directory / "tmp"
        self._layers = LayerStore(directory / "layers", first_id=first_id)
        self._mirrors = mirrors
        self._insecure_registries = insecure_registries
        self._docker_socket = docker_socket
        self._max_image_bytes = max_image_bytes
        self._registries: Registries | None = None
        self._locks = KeyedLocks()
        self._open_workspaces: set[Path] = set()
        self._open_records: set[Path] = set()
        self._wanted: Counter[str] = Counter()
        """Digests of images and layers that pulls under way need."""

    async def resolve(self, reference: Reference) -> str:
        async with self._workspace() as workspace, self._source(reference, workspace) as source:
            return await source.resolve()

    async def pull(self, reference: Reference, digest: str, report: Callable[[str, str], None]) -> Image:
        with self._needing(digest):
            async with self._locks[digest]:
                image = await self.load(digest)
                if image is not None:
                    report("pull", f"{reference} is already here")
                    return image
                async with self._workspace() as workspace, self._source(reference, workspace) as source:
                    return await self._pull(reference, digest, source, workspace, report)

    async def load(self, digest: str) -> Image | None:
        record = await asyncio.to_thread(self._read_record, digest)
        if record is None:
            return None
        manifest, configuration = record.parse(digest)
        pairs = pair_layers(manifest, configuration, digest)
        if not all(self._layers.has(diff_id) for diff_id in pairs):
            return None
        return self._image(digest, record, configuration, pairs)

    async def prune(self, keep: Collection[str]) -> None:
        self._discard_images(keep)
        leftovers = self._layers.discard(self._needed_layers())
        if self._workspaces.is_dir():
            leftovers += [path for path in self._workspaces.iterdir() if path not in self._open_workspaces]
        for path in leftovers:
            await asyncio.to_thread(_delete, path)

    async def close(self) -> None:
        """Close the connections to registries."""
        if self._registries is not None:
            await self._registries.close()

    async def _pull(
        self,
        reference: Reference,
        digest: str,
        source: Source,
        workspace: Path,
        report: Callable[[str, str], None],
    ) -> Image:
        record = await asyncio.to_thread(self._read_record, digest)
        if record is None:
            report("pull", f"Reading {reference}")
            record = await _fetch_record(source, digest, str(reference))
        manifest, configuration = record.parse(str(reference))
        pairs = pair_layers(manifest, configuration, str(reference))
        with self._needing(*pairs):
            pull = LayerPull(source, self._layers, self._locks, workspace, self._max_image_bytes, report)
            await pull.run(pairs)
            await asyncio.to_thread(self._write_record, digest, record)
        return self._image(digest, record, configuration, pairs)

    def _image(self, digest: str, record: _Record, configuration: Configuration, diff_ids: Iterable[str]) -> Image:
        layers: list[Path] = []
        for diff_id in diff_ids:
            if self._layers.hides_lower_layers(diff_id):
                layers.clear()
            layers.append(self._layers.path(diff_id))
        return Image(digest, tuple(layers), configuration.config, record.size)

    @asynccontextmanager
    async def _source(self, reference: Reference, workspace: Path) -> AsyncIterator[Source]:
        source = await self._open(reference, workspace)
        try:
            yield source
        finally:
            await source.close()

    async def _open(self, reference: Reference, workspace: Path) -> Source:
        if reference.transport == "docker-daemon":
            return DaemonSource(self._docker_socket, reference, workspace, self._max_image_bytes)
        if reference.is_local:
            return await asyncio.to_thread(open_local, reference, workspace, self._max_image_bytes)
        if self._registries is None:
            docker_config = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
            self._registries = Registries(self._mirrors, self._insecure_registries, docker_config)
        return RegistrySource(self._registries, reference)

    @asynccontextmanager
    async def _workspace(self) -> AsyncIterator[Path]:
        """A directory for what is needed until the end of one operation."""
        workspace = self._workspaces / secrets.token_hex(8)
        self._open_workspaces.add(workspace)
        try:
            with writing_below(self._workspaces):
                workspace.mkdir(parents=True, mode=0o700)
            yield workspace
        finally:
            # A thread of a cancelled pull may still write here; what it leaves is pruned.
            await asyncio.to_thread(shutil.rmtree, workspace, ignore_errors=True)
            self._open_workspaces.discard(workspace)

    @contextmanager
    def _needing(self, *digests: str) -> Iterator[None]:
        """Keep what has these digests from being pruned."""
        self._wanted.update(digests)
        try:
            yield
        finally:
            self._wanted.subtract(digests)
            self._wanted += Counter()  # forget what nobody wants any more

    def _record_path(self, digest: str) -> Path:
        return self._images / f"{digest.removeprefix('sha256:')}.json"

    def _read_record(self, digest: str) -> _Record | None:
        """What is stored under `digest`; None also for what is damaged, so that it is pulled anew."""
        if not is_digest(digest):
            return None
        try:
            record = msgspec.json.decode(self._record_path(digest).read_bytes(), type=_Record)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return record if sha256(record.manifest) == digest else None

    def _write_record(self, digest: str, record: _Record) -> None:
        with writing_below(self._images):
            self._images.mkdir(parents=True, exist_ok=True)
            temporary = self._images / f"{_TEMPORARY}{secrets.token_hex(8)}"
            self._open_records.add(temporary)
            try:
                with temporary.open("wb") as file:
                    file.write(msgspec.json.encode(record))
                    file.flush()
                    os.fsync(file.fileno())
                temporary.rename(self._record_path(digest))
            finally:
                self._open_records.discard(temporary)
            sync_directory(self._images)

    def _discard_images(self, keep: Collection[str]) -> None:
        kept = {self._record_path(digest) for digest in (*keep, *self._wanted)}
        for path in list(self._images.glob("*")):
            # A record that is being written is renamed by a thread, at any moment.
            if path not in kept and path not in self._open_records:
                path.unlink(missing_ok=True)

    def _needed_layers(self) -> set[str]:
        needed = set(self._wanted)
        for path in self._images.glob("*.json"):
            record = self._read_record(f"sha256:{path.stem}")
            if record is not None:
                needed.update(record.parse(path.name)[1].diff_ids)
        return needed


async def _fetch_record(source: Source, digest: str, what: str) -> _Record:
    manifest = await source.manifest(digest)
    document = parse_document(manifest, what)
    if not isinstance(document, Manifest):
        raise _not_a_manifest(what)
    return _Record(manifest, await source.config(document.config), await source.size(document))


def _not_a_manifest(what: str) -> CupolaError:
    return invalid_image(f"{what} is not the manifest of one image, but an index. Resolve the reference first.")


def _delete(path: Path) -> None:
    with suppress(FileNotFoundError):  # a pull that ends deletes its own leftovers
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
