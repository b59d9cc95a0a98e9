"""Writes container images as an OCI image layout, with no container engine.

The same content always has the same digest: names are sorted, every file belongs to root and carries one
fixed time, and the JSON is written in one form. So Python's bytecode must not depend on the time of its
source (`compileall --invalidation-mode unchecked-hash`): otherwise every start of the image compiles again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO, cast

from cupola.images.steps import BuildError

FILE_TIME = 946_684_800  # the year 2000: zip archives, which agents make of such files, cannot say 1970
_CREATED = "2000-01-01T00:00:00Z"
_CHUNK = 1024 * 1024
_GZIP_LEVEL = 1
_GZIP_WINDOW = 31  # zlib's way to ask for a gzip header, without name and time

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_TAG = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class Layer:
    """A gzipped tar blob of a layout. `diff_id` is the digest of the tar, `size` is the blob's, in bytes."""

    digest: str
    diff_id: str
    size: int


class LayoutWriter:
    """An OCI image layout in `directory`, made if it is not there. One writer at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blobs = directory / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        _replace(directory / "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        if not (directory / "index.json").exists():
            self._write_index([])

    def add_layer(self, root: Path, *, prefix: str = "", plain_modes: bool = False) -> Layer:
        """The folder `root` as a layer, below the path `prefix` of the image.

        `plain_modes` makes the result independent of the umask that the files were written with: folders and
        executable files become 0755, others 0644. Hard links become separate files, extended attributes are
        left out. Raises BuildError for a socket, pipe or device.
        """

        def fill(tar: tarfile.TarFile) -> None:
            _add_parents(tar, prefix, set())
            _add_folder(tar, root, prefix.strip("/"), plain_modes)

        return self._write_layer(fill)

    def add_files(self, files: Mapping[str, bytes | str], *, executable: Collection[str] = ()) -> Layer:
        """A layer of `files`, path to content. The paths in `executable` become 0755, others 0644."""

        def fill(tar: tarfile.TarFile) -> None:
            folders: set[str] = set()
            for path, content in sorted(files.items()):
                _add_parents(tar, str(PurePosixPath(path.strip("/")).parent), folders)
                data = content.encode() if isinstance(content, str) else content
                info = _entry(path.strip("/"), tarfile.REGTYPE, 0o755 if path in executable else 0o644)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

        return self._write_layer(fill)

    def copy_layer(self, layer: Layer, source: Path) -> None:
        """Takes `layer` over from the layout in `source`."""
        if self._blob(layer.digest).exists():
            return
        with self._temporary() as file, LayoutWriter(source)._blob(layer.digest).open("rb") as content:
            shutil.copyfileobj(content, file, _CHUNK)
            self._keep(file, layer.digest)

    def add_image(
        self,
        layers: Sequence[Layer],
        *,
        tag: str,
        entrypoint: Sequence[str] = (),
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        working_directory: str = "/",
        user: str = "",
        architecture: str = "amd64",
        labels: Mapping[str, str] | None = None,
    ) -> str:
        """Adds a Linux image of `layers`, lowest first, and gives its manifest's digest.

        `tag` moves to it if another image had it; other tags stay.
        """
        settings: dict[str, Any] = {
            "User": user,
            "Env": [f"{name}={value}" for name, value in sorted((environment or {}).items())],
            "Entrypoint": list(entrypoint),
            "Cmd": list(command),
            "WorkingDir": working_directory,
            "Labels": dict(labels or {}),
        }
        config = {
            "created": _CREATED,
            "architecture": architecture,
            "os": "linux",
            "config": {name: value for name, value in settings.items() if value},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._add_json(config, _CONFIG),
            "layers": [{"mediaType": _LAYER, "digest": layer.digest, "size": layer.size} for layer in layers],
        }
        descriptor = self._add_json(manifest, _MANIFEST)
        index = json.loads((self.directory / "index.json").read_bytes())
        others = [entry for entry in index["manifests"] if _tag(entry) != tag]
        platform = {"architecture": architecture, "os": "linux"}
        self._write_index([*others, {**descriptor, "platform": platform, "annotations": {_TAG: tag}}])
        return str(descriptor["digest"])

    def _write_index(self, manifests: list[dict[str, Any]]) -> None:
        ordered = sorted(manifests, key=lambda entry: (_tag(entry), str(entry["digest"])))
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": ordered}
        _replace(self.directory / "index.json", _json(index))

    def _add_json(self, value: Mapping[str, Any], media_type: str) -> dict[str, Any]:
        content = _json(value)
        digest = _digest(hashlib.sha256(content))
        if not self._blob(digest).exists():
            _replace(self._blob(digest), content)
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def _write_layer(self, fill: Callable[[tarfile.TarFile], None]) -> Layer:
        with self._temporary() as file:
            stream = _LayerStream(file)
            with tarfile.open(fileobj=cast("BinaryIO", stream), mode="w", format=tarfile.PAX_FORMAT) as tar:
                fill(tar)
            layer = stream.finish()
            self._keep(file, layer.digest)
        return layer

    @contextmanager
    def _temporary(self) -> Iterator[BinaryIO]:
        with NamedTemporaryFile(dir=self.directory, prefix=".blob-", delete=False) as file:
            try:
                yield cast("BinaryIO", file)
            finally:
                Path(file.name).unlink(missing_ok=True)

    def _keep(self, file: BinaryIO, digest: str) -> None:
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        if not self._blob(digest).exists():
            Path(file.name).rename(self._blob(digest))

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.partition(":")[2]


class _LayerStream:
    """Hashes and compresses a tar while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._gzip = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        self._tar_hash = hashlib.sha256()
        self._blob_hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._tar_hash.update(data)
        self._put(self._gzip.compress(data))
        return len(data)

    def tell(self) -> int:
        return 0  # tarfile asks once, before it writes

    def finish(self) -> Layer:
        self._put(self._gzip.flush())
        return Layer(_digest(self._blob_hash), _digest(self._tar_hash), self._size)

    def _put(self, data: bytes) -> None:
        self._blob_hash.update(data)
        self._size += len(data)
        self._file.write(data)


def _add_folder(tar: tarfile.TarFile, folder: Path, prefix: str, plain_modes: bool) -> None:
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        name = f"{prefix}/{entry.name}" if prefix else entry.name
        status = entry.stat(follow_symlinks=False)
        mode = stat.S_IMODE(status.st_mode)
        if plain_modes:
            mode = 0o755 if stat.S_ISDIR(status.st_mode) or mode & 0o100 else 0o644
        if entry.is_symlink():
            info = _entry(name, tarfile.SYMTYPE, 0o777)
            info.linkname = str(Path(entry.path).readlink())
            tar.addfile(info)
        elif entry.is_dir(follow_symlinks=False):
            tar.addfile(_entry(name, tarfile.DIRTYPE, mode))
            _add_folder(tar, Path(entry.path), name, plain_modes)
        elif entry.is_file(follow_symlinks=False):
            info = _entry(name, tarfile.REGTYPE, mode)
            info.size = status.st_size
            with Path(entry.path).open("rb") as content:
                tar.addfile(info, content)
        else:
            raise BuildError(f"{entry.path} is neither a file, a folder nor a symbolic link")


def _add_parents(tar: tarfile.TarFile, folder: str, added: set[str]) -> None:
    """The entries of `folder` and of those above it, but for the ones in `added`, which grows by them."""
    path = PurePosixPath(folder.strip("/"))
    for name in (str(each) for each in reversed([path, *path.parents])):
        if name != "." and name not in added:
            tar.addfile(_entry(name, tarfile.DIRTYPE, 0o755))
            added.add(name)


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime = kind, mode, FILE_TIME
    return info


def _tag(descriptor: Mapping[str, Any]) -> str:
    return str(descriptor.get("annotations", {}).get(_TAG, ""))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(hashed: hashlib._Hash) -> str:
    return f"sha256:{hashed.hexdigest()}"


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.rename(path)
