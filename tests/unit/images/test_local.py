"""Layouts and archives on this machine."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.images.model import Image
from cupola.images.reference import parse_reference
from cupola.images.store import ImageStore
from tests.unit.images.samples import (
    Published,
    as_tar,
    compressed,
    digest_of,
    docker_archive,
    entry,
    hardlink,
    ignore,
    symlink,
    tar,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

BASE = tar(entry("base", b"b"))
TOP = tar(entry("top", b"t"))


async def pull(store: ImageStore, text: str) -> Image:
    reference = parse_reference(text)
    return await store.pull(reference, await store.resolve(reference), ignore)


async def refusal(store: ImageStore, text: str, code: str = "InvalidContainerImage") -> str:
    with pytest.raises(CupolaError) as caught:
        await pull(store, text)
    assert caught.value.code == code
    return caught.value.message


def contents(image: Image) -> list[set[str]]:
    return [{path.name for path in layer.iterdir()} for layer in image.layers]


async def test_tags_of_a_layout(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    published.add(BASE, tag="old")
    published.add(BASE, TOP, tag="new")
    layout = published.write(tmp_path / "layout")
    assert contents(await pull(store, f"oci:{layout}:old")) == [{"base"}]
    assert contents(await pull(store, f"oci:{layout}:new")) == [{"base"}, {"top"}]
    assert "several images: new, old" in await refusal(store, f"oci:{layout}")
    assert "no image called 'next'; it holds: new, old" in await refusal(store, f"oci:{layout}:next")


async def test_an_index_in_a_layout(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    published.add(TOP, architecture="arm64")
    published.add(BASE)
    platforms = ({"architecture": "arm64", "os": "linux"}, {"architecture": "amd64", "os": "linux"})
    offers = [{**each, "platform": platform} for each, platform in zip(published.manifests, platforms, strict=True)]
    index = published.put(json.dumps({"schemaVersion": 2, "manifests": offers}).encode())
    published.manifests = [index]
    assert contents(await pull(store, f"oci:{published.write(tmp_path / 'layout')}")) == [{"base"}]


async def test_an_image_for_arm(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    published.add(BASE, architecture="arm64")
    message = await refusal(store, f"oci:{published.write(tmp_path / 'layout')}")
    assert "found: linux/arm64" in message
    assert "--platform linux/amd64" in message


async def test_layouts_that_lead_outside(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    digest = published.add(BASE)
    layout = published.write(tmp_path / "layout")
    blobs = layout / "blobs/sha256"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "cannot be read" in await refusal(store, f"oci:{layout}")
    blobs.unlink()
    (tmp_path / "elsewhere").rename(blobs)
    manifest = blobs / digest.removeprefix("sha256:")
    manifest.rename(tmp_path / "manifest")
    manifest.symlink_to(tmp_path / "manifest")
    assert "cannot be read" in await refusal(store, f"oci:{layout}")
    manifest.unlink()
    os.mkfifo(manifest)
    assert "not a regular file" in await refusal(store, f"oci:{layout}")


async def test_a_manifest_with_other_bytes(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    digest = published.add(BASE)
    published.blobs[digest] += b" "
    layout = published.write(tmp_path / "layout")
    assert "other bytes" in await refusal(store, f"oci:{layout}", "ImagePullBackOff")


async def test_paths_that_hold_no_image(tmp_path: Path, store: ImageStore) -> None:
    (tmp_path / "file").write_text("x" * 2000)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.tar").write_bytes(tar(entry("a")))
    os.mkfifo(tmp_path / "pipe")
    assert "No such file" in await refusal(store, f"oci:{tmp_path}/missing")
    assert "No such file" in await refusal(store, f"oci-archive:{tmp_path}/missing")
    assert "Not a directory" in await refusal(store, f"oci:{tmp_path}/file")
    assert "neither index.json" in await refusal(store, f"oci:{tmp_path}/empty")
    assert "not a valid tar" in await refusal(store, f"docker-archive:{tmp_path}/file")
    assert "neither index.json" in await refusal(store, f"docker-archive:{tmp_path}/other.tar")
    assert "not a regular file" in await refusal(store, f"docker-archive:{tmp_path}/pipe")
    assert "Is a directory" in await refusal(store, f"oci-archive:{tmp_path}/empty")


async def test_oci_archives(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    digest = published.add(BASE, TOP, tag="1")
    archive = published.archive(tmp_path / "image.tar")
    image = await pull(store, f"oci-archive:{archive}:1")
    assert image.digest == digest
    assert contents(image) == [{"base"}, {"top"}]
    await store.prune([])
    packed = tmp_path / "image.tar.gz"
    packed.write_bytes(gzip.compress(archive.read_bytes()))
    assert (await pull(store, f"oci-archive:{packed}")).digest == digest
    packed.write_bytes(packed.read_bytes()[:-50])
    assert "is damaged" in await refusal(store, f"oci-archive:{packed}")
    archive.write_bytes(archive.read_bytes()[:3000])
    assert "archive" in await refusal(store, f"oci-archive:{archive}")


async def test_docker_archives(tmp_path: Path, store: ImageStore) -> None:
    archive = tmp_path / "saved.tar"
    archive.write_bytes(as_tar(docker_archive(BASE, TOP, Cmd=["run"])))
    image = await pull(store, f"docker-archive:{archive}")
    assert contents(image) == [{"base"}, {"top"}]
    assert image.config.command == ("run",)
    assert image.size == len(BASE) + len(TOP)
    assert await pull(store, f"docker-archive:{archive}:demo:1.0") == image
    assert "no image called docker.io/library/demo:2.0" in await refusal(store, f"docker-archive:{archive}:demo:2.0")
    files = docker_archive(BASE, TOP, Cmd=["run"])
    files["0/layer.tar"] = compressed(BASE)
    archive.write_bytes(as_tar(files))
    assert await store.resolve(parse_reference(f"docker-archive:{archive}")) == image.digest


async def test_links_in_a_docker_archive(tmp_path: Path, store: ImageStore) -> None:
    files = docker_archive(BASE, TOP)
    del files["0/layer.tar"], files["1/layer.tar"]
    members = [
        *(entry(name, content) for name, content in files.items()),
        entry("real/base.tar", BASE),
        symlink("0/layer.tar", "../real/base.tar"),
        entry("./real/top.tar", TOP),
        hardlink("1/layer.tar", "real/top.tar"),
    ]
    archive = tmp_path / "saved.tar"
    archive.write_bytes(tar(*members))
    assert contents(await pull(store, f"docker-archive:{archive}")) == [{"base"}, {"top"}]
    await store.prune([])
    members[3] = symlink("0/layer.tar", "../../../../../../etc/passwd")
    archive.write_bytes(tar(*members))
    assert "holds no '0/layer.tar'" in await refusal(store, f"docker-archive:{archive}")


async def test_an_archive_that_is_both_kinds(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    digest = published.add(BASE, tag="1.0", Cmd=["run"])
    archive = tmp_path / "both.tar"
    archive.write_bytes(as_tar(published.files | docker_archive(BASE, Cmd=["run"])))
    as_layout = await pull(store, f"oci-archive:{archive}:1.0")
    as_docker = await pull(store, f"docker-archive:{archive}:demo:1.0")
    assert as_layout.digest == digest != as_docker.digest
    assert as_layout.layers == as_docker.layers


async def test_a_docker_archive_that_was_replaced(tmp_path: Path, store: ImageStore) -> None:
    archive = tmp_path / "saved.tar"
    archive.write_bytes(as_tar(docker_archive(BASE)))
    reference = parse_reference(f"docker-archive:{archive}")
    digest = await store.resolve(reference)
    archive.write_bytes(as_tar(docker_archive(TOP)))
    with pytest.raises(CupolaError, match="now is another image") as caught:
        await store.pull(reference, digest, ignore)
    assert caught.value.code == "ImagePullBackOff"


async def test_a_docker_archive_with_another_layer(tmp_path: Path, store: ImageStore) -> None:
    files = docker_archive(BASE)
    files["0/layer.tar"] = TOP
    (tmp_path / "saved.tar").write_bytes(as_tar(files))
    assert f"configuration says {digest_of(BASE)}" in await refusal(store, f"docker-archive:{tmp_path}/saved.tar")
