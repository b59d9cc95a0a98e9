"""The layout writer: the same content has the same digest, and every tool can read what it wrote."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from cupola.images.build import FILE_TIME, Layer, LayoutWriter
from cupola.images.steps import BuildError


def blob(layout: Path, digest: str) -> bytes:
    algorithm, _, name = digest.partition(":")
    content = (layout / "blobs" / algorithm / name).read_bytes()
    assert hashlib.new(algorithm, content).hexdigest() == name
    return content


def document(layout: Path, digest: str) -> dict[str, Any]:
    found = json.loads(blob(layout, digest))
    assert isinstance(found, dict)
    return found


def members(layout: Path, layer: Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(blob(layout, layer.digest)), mode="r:gz") as tar:
        return {info.name: info for info in tar}


def index(layout: Path) -> dict[str, str]:
    manifests = json.loads((layout / "index.json").read_text())["manifests"]
    return {entry["annotations"]["org.opencontainers.image.ref.name"]: entry["digest"] for entry in manifests}


def small_tree(root: Path, names: list[str]) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    return root


def test_a_layer_has_the_digests_and_the_size_of_its_blob(tmp_path: Path) -> None:
    layer = LayoutWriter(tmp_path).add_files({"hello": "world"})
    content = blob(tmp_path, layer.digest)
    assert layer.size == len(content)
    assert layer.diff_id == f"sha256:{hashlib.sha256(zlib.decompress(content, 31)).hexdigest()}"


def test_the_same_content_has_the_same_digest_whatever_its_times_order_and_umask(tmp_path: Path) -> None:
    first = small_tree(tmp_path / "first", ["a/b/c", "a/b.txt", "z", "Z"])
    second = small_tree(tmp_path / "second", ["Z", "z", "a/b.txt", "a/b/c"])
    os.utime(second / "z", (1, 1))
    (second / "a").chmod(0o700)
    (second / "z").chmod(0o600)
    layers = [
        LayoutWriter(tmp_path / name).add_layer(root, prefix="opt/x", plain_modes=True)
        for name, root in (("one", first), ("two", second))
    ]
    assert layers[0] == layers[1]
    images = [LayoutWriter(tmp_path / name).add_image(layers, tag="t") for name in ("one", "two")]
    assert images[0] == images[1]


def test_the_same_layer_is_written_once(tmp_path: Path) -> None:
    writer = LayoutWriter(tmp_path)
    layer = writer.add_files({"hello": "world"})
    path = tmp_path / "blobs" / "sha256" / layer.digest.removeprefix("sha256:")
    before = path.stat().st_ino
    assert writer.add_files({"hello": b"world"}) == layer
    assert path.stat().st_ino == before
    assert [entry.name for entry in (tmp_path / "blobs" / "sha256").iterdir()] == [path.name]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_a_folder_keeps_links_modes_and_content(tmp_path: Path) -> None:
    root = small_tree(tmp_path / "root", ["bin/run", "data/deep/er/file", "data/ünïcode " + "long" * 40])
    (root / "bin/run").chmod(0o755)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "bin/link").symlink_to("/nowhere/at all")
    (root / "bin/folder").symlink_to("../data")
    found = members(tmp_path / "layout", LayoutWriter(tmp_path / "layout").add_layer(root))
    assert list(found) == sorted(found, key=lambda name: name.split("/"))
    assert found["bin/run"].mode == 0o755
    assert found["tmp"].mode == 0o1777
    assert found["data"].isdir()
    assert (found["bin/link"].issym(), found["bin/link"].linkname) == (True, "/nowhere/at all")
    assert found["bin/folder"].linkname == "../data"
    assert "data/ünïcode " + "long" * 40 in found
    for info in found.values():
        assert (info.uid, info.gid, info.uname, info.gname, info.mtime) == (0, 0, "", "", FILE_TIME)


def test_files_come_with_their_folders_and_their_modes(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"/app/main.py": "print()", "app/bin/run": b"#!/bin/sh\n"}
    found = members(tmp_path, LayoutWriter(tmp_path).add_files(files, executable={"app/bin/run"}))
    assert {name: info.mode for name, info in found.items()} == {
        "app": 0o755,
        "app/main.py": 0o644,
        "app/bin": 0o755,
        "app/bin/run": 0o755,
    }


def test_a_pipe_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    os.mkfifo(tmp_path / "root" / "pipe")
    with pytest.raises(BuildError, match="pipe is neither"):
        LayoutWriter(tmp_path / "layout").add_layer(tmp_path / "root")
    assert sorted(entry.name for entry in (tmp_path / "layout").iterdir()) == [
        "blobs",
        "index.json",
        "oci-layout",
    ]
    assert list((tmp_path / "layout" / "blobs" / "sha256").iterdir()) == []


def test_an_image_has_the_config_that_was_asked_for(tmp_path: Path) -> None:
    writer = LayoutWriter(tmp_path)
    layers = [writer.add_files({"a": "1"}), writer.add_files({"b": "2"})]
    digest = writer.add_image(
        layers,
        tag="full",
        entrypoint=["python3"],
        command=["main.py"],
        environment={"B": "2", "A": "1=1"},
        working_directory="/app",
        user="agent",
        architecture="arm64",
        labels={"org.example": "yes"},
    )
    manifest = document(tmp_path, digest)
    assert [entry["digest"] for entry in manifest["layers"]] == [layer.digest for layer in layers]
    assert [entry["size"] for entry in manifest["layers"]] == [layer.size for layer in layers]
    assert manifest["config"]["size"] == len(blob(tmp_path, manifest["config"]["digest"]))
    config = document(tmp_path, manifest["config"]["digest"])
    assert config["rootfs"] == {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    assert (config["os"], config["architecture"]) == ("linux", "arm64")
    assert config["config"] == {
        "User": "agent",
        "Env": ["A=1=1", "B=2"],
        "Entrypoint": ["python3"],
        "Cmd": ["main.py"],
        "WorkingDir": "/app",
        "Labels": {"org.example": "yes"},
    }


def test_a_bare_image_says_only_where_it_works(tmp_path: Path) -> None:
    writer = LayoutWriter(tmp_path)
    manifest = document(tmp_path, writer.add_image([writer.add_files({"a": "1"})], tag="bare"))
    assert document(tmp_path, manifest["config"]["digest"])["config"] == {"WorkingDir": "/"}


def test_a_tag_moves_and_the_others_stay(tmp_path: Path) -> None:
    writer = LayoutWriter(tmp_path)
    layer = writer.add_files({"a": "1"})
    old = writer.add_image([layer], tag="b", user="1")
    kept = writer.add_image([layer], tag="a")
    assert index(tmp_path) == {"a": kept, "b": old}
    moved = LayoutWriter(tmp_path).add_image([layer], tag="b", user="2")
    assert moved != old
    assert index(tmp_path) == {"a": kept, "b": moved}
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_a_layer_moves_between_layouts(tmp_path: Path) -> None:
    layer = LayoutWriter(tmp_path / "one").add_files({"a": "1"})
    for _ in range(2):
        LayoutWriter(tmp_path / "two").copy_layer(layer, tmp_path / "one")
    assert blob(tmp_path / "two", layer.digest) == blob(tmp_path / "one", layer.digest)


def test_a_big_tree_comes_back_whole(tmp_path: Path) -> None:
    root = small_tree(tmp_path / "root", [f"{n % 40}/{n % 7}/{n}" for n in range(2000)])
    (root / "large").write_bytes(os.urandom(5_000_000))
    layer = LayoutWriter(tmp_path / "layout").add_layer(root, prefix="/a/b/")
    content = blob(tmp_path / "layout", layer.digest)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        found = {info.name: tar.extractfile(info) for info in tar if info.isfile()}
        assert len(found) == 2001
        for name, file in found.items():
            assert file is not None
            assert file.read() == (root / name.removeprefix("a/b/")).read_bytes()
