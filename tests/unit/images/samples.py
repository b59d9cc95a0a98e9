"""Layers, layouts and archives made in memory, right ones and wrong ones."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> Entry:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    member.type = kind
    member.mtime = 1_700_000_000
    member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(member, key, value)
    return member, content


def directory(name: str, **fields: Any) -> Entry:
    return entry(name, kind=tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Entry:
    return entry(name, kind=tarfile.LNKTYPE, linkname=target)


def tar(*entries: Entry, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for member, content in entries:
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def compressed(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def config_json(diff_ids: Sequence[str], architecture: str = "amd64", **execution: Any) -> bytes:
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": execution,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    return json.dumps(document).encode()


@dataclass
class Published:
    """Blobs by digest, and the index of an OCI image layout."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def put(self, content: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
        digest = digest_of(content)
        self.blobs[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content)}

    def add(
        self,
        *layers: bytes,
        tag: str | None = None,
        architecture: str = "amd64",
        compress: Callable[[bytes], bytes] = compressed,
        layer_type: str = "application/vnd.oci.image.layer.v1.tar+gzip",
        diff_ids: Sequence[str] | None = None,
        **execution: Any,
    ) -> str:
        """Add an image of these uncompressed layers and return the digest of its manifest."""
        diff_ids = [digest_of(layer) for layer in layers] if diff_ids is None else diff_ids
        config = self.put(config_json(diff_ids, architecture, **execution), "application/vnd.oci.image.config.v1+json")
        descriptors = [self.put(compress(layer), layer_type) for layer in layers]
        document = {"schemaVersion": 2, "config": config, "layers": descriptors}
        manifest = self.put(json.dumps(document).encode(), "application/vnd.oci.image.manifest.v1+json")
        annotations = {"org.opencontainers.image.ref.name": tag} if tag else {}
        self.manifests.append({**manifest, "annotations": annotations})
        return str(manifest["digest"])

    @property
    def files(self) -> dict[str, bytes]:
        files = {"blobs/" + digest.replace(":", "/"): content for digest, content in self.blobs.items()}
        files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": self.manifests}).encode()
        files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
        return files

    def write(self, directory: Path) -> Path:
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return directory

    def archive(self, path: Path) -> Path:
        path.write_bytes(tar(*(entry(name, content) for name, content in self.files.items())))
        return path


def docker_archive(*layers: bytes, name: str = "demo:1.0", **execution: Any) -> dict[str, bytes]:
    """The files of `docker save`, as engines before version 25 wrote them."""
    config = config_json([digest_of(layer) for layer in layers], **execution)
    config_name = f"{digest_of(config).removeprefix('sha256:')}.json"
    layer_names = [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": layer_names}]
    files = dict(zip(layer_names, layers, strict=True))
    return {**files, config_name: config, "manifest.json": json.dumps(manifest).encode()}


def as_tar(files: dict[str, bytes]) -> bytes:
    return tar(*(entry(name, content) for name, content in files.items()))


def ignore(step: str, message: str) -> None:
    """A report that nobody reads."""
