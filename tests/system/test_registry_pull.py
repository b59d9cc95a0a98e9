"""Pull from a real registry what a real client pushed there."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import zstandard

from cupola.domain.errors import CupolaError
from cupola.images.model import Image
from cupola.images.reference import parse_reference
from cupola.images.store import ImageStore
from tests.system.registry import copy_image, serve_registry
from tests.unit.images.samples import Published, ignore, tar
from tests.unit.images.samples import entry as tar_entry

BASE = tar(tar_entry("etc/base", b"b" * 100_000))
TOP = tar(tar_entry("app/main.py", b"print('hello')"), tar_entry("etc/.wh.base"))


@dataclass(frozen=True)
class Registry:
    host: str
    digest: str


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    directory = tmp_path_factory.mktemp("registry")
    with serve_registry(directory) as host:
        published = Published()
        digest = published.add(BASE, TOP, tag="1.0", Cmd=["python", "main.py"], WorkingDir="/app")
        layout = published.write(directory / "layout")
        copy_image(f"oci:{layout}:1.0", f"docker://{host}/team/agent:1.0")
        copy_image(f"oci:{layout}:1.0", f"docker://{host}/team/agent:schema2", "--format=v2s2")
        zstd = Published()
        compress = zstandard.ZstdCompressor().compress
        media_type = "application/vnd.oci.image.layer.v1.tar+zstd"
        zstd.add(
            *(BASE, TOP),
            tag="1.0",
            compress=compress,
            layer_type=media_type,
            Cmd=["python", "main.py"],
            WorkingDir="/app",
        )
        copy_image(f"oci:{zstd.write(directory / 'zstd')}:1.0", f"docker://{host}/team/agent:zstd")
        arm = Published()
        arm.add(BASE, tag="1.0", architecture="arm64")
        copy_image(f"oci:{arm.write(directory / 'arm')}:1.0", f"docker://{host}/team/arm:1.0")
        yield Registry(host, digest)


async def pull(store: ImageStore, text: str) -> Image:
    reference = parse_reference(text)
    return await store.pull(reference, await store.resolve(reference), ignore)


async def check(image: Image) -> None:
    assert (image.layers[0] / "etc/base").stat().st_size == 100_000
    assert (image.layers[1] / "app/main.py").read_bytes() == b"print('hello')"
    assert (image.layers[1] / "etc/base").is_char_device()
    assert image.config.command == ("python", "main.py")
    assert image.config.working_directory == "/app"


@pytest.mark.parametrize("tag", ["1.0", "schema2", "zstd"])
async def test_by_tag(registry: Registry, tmp_path: Path, tag: str) -> None:
    store = ImageStore(tmp_path / "store")
    await check(await pull(store, f"{registry.host}/team/agent:{tag}"))
    await store.close()


async def test_by_digest(registry: Registry, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    image = await pull(store, f"{registry.host}/team/agent@{registry.digest}")
    assert image.digest == registry.digest
    await check(image)
    await store.close()


async def test_through_a_mirror(registry: Registry, tmp_path: Path) -> None:
    mirrors = {"myregistry.azurecr.io": f"http://{registry.host}/team"}
    store = ImageStore(tmp_path / "store", mirrors=mirrors)
    await check(await pull(store, "myregistry.azurecr.io/agent:1.0"))
    await store.close()


async def test_concurrent_pulls(registry: Registry, tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    images = await asyncio.gather(*(pull(store, f"{registry.host}/team/agent:1.0") for _ in range(5)))
    assert len(set(images)) == 1
    await store.close()


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("team/agent:2.0", "InvalidContainerImage", "does not have"),
        ("team/nobody:1.0", "InvalidContainerImage", "does not have"),
        (f"team/agent@sha256:{'0' * 64}", "InvalidContainerImage", "does not have"),
        ("team/arm:1.0", "InvalidContainerImage", "found: linux/arm64"),
    ],
)
async def test_refusals(registry: Registry, tmp_path: Path, name: str, code: str, reason: str) -> None:
    store = ImageStore(tmp_path / "store")
    with pytest.raises(CupolaError, match=reason) as caught:
        await pull(store, f"{registry.host}/{name}")
    assert caught.value.code == code
    await store.close()


async def test_nobody_there(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store")
    with pytest.raises(CupolaError, match="cannot be reached") as caught:
        await pull(store, "127.0.0.1:9/team/agent:1.0")
    assert caught.value.code == "ImagePullBackOff"
    await store.close()
