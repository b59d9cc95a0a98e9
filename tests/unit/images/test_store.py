from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.images.layers import LayerStore
from cupola.images.model import Image
from cupola.images.reference import Reference, parse_reference
from cupola.images.store import ImageStore
from tests.unit.images.samples import Published, digest_of, entry, ignore, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

BASE = tar(entry("base", b"b"))
TOP = tar(entry("top", b"t"))


def publish(directory: Path, *layers: bytes, tag: str = "1") -> tuple[Reference, str]:
    published = Published()
    digest = published.add(*layers, tag=tag, Cmd=["run"])
    return parse_reference(f"oci:{published.write(directory)}:{tag}"), digest


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.is_dir() else set()


async def test_from_a_name_to_layers(tmp_path: Path, store: ImageStore) -> None:
    reference, digest = publish(tmp_path / "layout", BASE, TOP)
    assert await store.resolve(reference) == digest
    assert await store.load(digest) is None
    reports: list[tuple[str, str]] = []
    image = await store.pull(reference, digest, lambda step, message: reports.append((step, message)))
    assert image.digest == digest
    assert [names(layer) for layer in image.layers] == [{"base"}, {"top"}]
    assert image.config.command == ("run",)
    assert image.size > 0
    assert {step for step, _ in reports} == {"pull", "unpack"}
    assert names(tmp_path / "store/tmp") == set()


async def test_what_is_stored_needs_no_source(tmp_path: Path, store: ImageStore) -> None:
    reference, digest = publish(tmp_path / "layout", BASE)
    image = await store.pull(reference, digest, ignore)
    shutil.rmtree(tmp_path / "layout")
    assert await store.pull(reference, digest, ignore) == image
    again = ImageStore(tmp_path / "store")
    assert await again.load(digest) == image
    await again.close()


async def test_a_layer_that_is_there_is_not_read_again(tmp_path: Path, store: ImageStore) -> None:
    await store.pull(*publish(tmp_path / "one", BASE), ignore)
    published = Published()
    digest = published.add(BASE, TOP)
    directory = published.write(tmp_path / "two")
    first = next(key for key, content in published.blobs.items() if content.startswith(b"\x1f\x8b"))
    (directory / "blobs" / first.replace(":", "/")).unlink()
    image = await store.pull(parse_reference(f"oci:{directory}"), digest, ignore)
    assert [names(layer) for layer in image.layers] == [{"base"}, {"top"}]


async def test_a_layer_that_was_lost_is_pulled_again(tmp_path: Path, store: ImageStore) -> None:
    reference, digest = publish(tmp_path / "layout", BASE, TOP)
    image = await store.pull(reference, digest, ignore)
    shutil.rmtree(image.layers[1])
    assert await store.load(digest) is None
    assert await store.pull(reference, digest, ignore) == image


async def test_a_damaged_record_is_pulled_again(tmp_path: Path, store: ImageStore) -> None:
    reference, digest = publish(tmp_path / "layout", BASE)
    image = await store.pull(reference, digest, ignore)
    record = next((tmp_path / "store/images").iterdir())
    record.write_bytes(record.read_bytes()[:40])
    assert await store.load(digest) is None
    assert await store.pull(reference, digest, ignore) == image


async def test_concurrent_pulls_do_the_work_once(
    tmp_path: Path, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked: list[str] = []
    unpack = LayerStore.unpack

    async def counted(self: LayerStore, diff_id: str, *arguments: object) -> None:
        unpacked.append(diff_id)
        await unpack(self, diff_id, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerStore, "unpack", counted)
    one = publish(tmp_path / "one", BASE, TOP)
    two = publish(tmp_path / "two", BASE)
    images = await asyncio.gather(*(store.pull(*each, ignore) for each in (one, two, one, two)))
    assert sorted(unpacked) == sorted([digest_of(BASE), digest_of(TOP)])
    assert images[0] == images[2]
    assert images[1].layers[0] == images[0].layers[0]


async def test_prune(tmp_path: Path, store: ImageStore) -> None:
    one = await store.pull(*publish(tmp_path / "one", BASE, TOP), ignore)
    two = await store.pull(*publish(tmp_path / "two", BASE), ignore)
    for leftover in ("layers/.tmp-1/half", "tmp/crashed/blob"):
        (tmp_path / "store" / leftover).mkdir(parents=True)
    (tmp_path / "store/images/.tmp-2").touch()
    await store.prune([one.digest, two.digest])
    assert names(tmp_path / "store/tmp") == set()
    assert len(names(tmp_path / "store/layers")) == 4
    assert await store.load(one.digest) == one
    await store.prune([two.digest])
    assert await store.load(one.digest) is None
    assert await store.load(two.digest) == two
    assert not one.layers[1].exists()
    await store.prune([])
    assert names(tmp_path / "store/layers") == names(tmp_path / "store/images") == set()


async def test_prune_leaves_a_pull_alone(tmp_path: Path, store: ImageStore) -> None:
    reference, digest = publish(tmp_path / "layout", BASE, TOP)
    pull = asyncio.create_task(store.pull(reference, digest, ignore))
    while not pull.done():
        await store.prune([])
        await asyncio.sleep(0.002)
    assert all(layer.is_dir() for layer in pull.result().layers)


async def test_cancelling_a_pull(tmp_path: Path, store: ImageStore) -> None:
    reference, digest = publish(tmp_path / "layout", BASE, TOP)
    started = asyncio.Event()

    def report(step: str, message: str) -> None:
        if step == "unpack":
            started.set()

    pull = asyncio.create_task(store.pull(reference, digest, report))
    await started.wait()
    await asyncio.sleep(0.01)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    await store.prune([])
    assert names(tmp_path / "store/layers") == names(tmp_path / "store/tmp") == set()
    image = await store.pull(reference, digest, ignore)
    assert all(layer.is_dir() for layer in image.layers)


async def test_an_image_that_is_too_large(tmp_path: Path) -> None:
    store = ImageStore(tmp_path / "store", max_image_bytes=len(BASE) + len(TOP) - 1)
    with pytest.raises(CupolaError, match="more than the") as caught:
        await store.pull(*publish(tmp_path / "layout", BASE, TOP), ignore)
    assert caught.value.code == "InvalidContainerImage"
    await store.close()


async def test_a_changing_tag_does_not_change_what_is_pinned(tmp_path: Path, store: ImageStore) -> None:
    published = Published()
    old = published.add(BASE, tag="1")
    published.manifests.clear()
    new = published.add(TOP, tag="1")
    reference = parse_reference(f"oci:{published.write(tmp_path / 'layout')}:1")
    assert await store.resolve(reference) == new
    image = await store.pull(reference, old, ignore)
    assert names(image.layers[0]) == {"base"}


async def test_digests_that_are_none(store: ImageStore, pull_layers: Callable[..., Awaitable[Image]]) -> None:
    await pull_layers(BASE)
    assert await store.load("../../etc/passwd") is None
    assert await store.load("sha256:" + "0" * 64) is None
