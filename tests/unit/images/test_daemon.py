from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.images.reference import parse_reference
from cupola.images.store import ImageStore
from tests.unit.images.samples import as_tar, config_json, digest_of, docker_archive, entry, ignore, tar
from tests.unit.images.servers import Answer, Request, serve

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

LAYER = tar(entry("file", b"x"))
REFERENCE = parse_reference("docker-daemon:demo:1.0")
PATH = "/images/docker.io/library/demo:1.0"


def inspection(**changes: object) -> bytes:
    return json.dumps(
        {
            "Id": digest_of(config_json([digest_of(LAYER)])),
            "Os": "linux",
            "Architecture": "amd64",
            "RootFS": {"Type": "layers", "Layers": [digest_of(LAYER)]},
            **changes,
        }
    ).encode()


class Engine:
    def __init__(self, inspected: bytes) -> None:
        self.answers = {f"{PATH}/json": inspected, f"{PATH}/get": as_tar(docker_archive(LAYER))}
        self.asked: list[str] = []

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request.path)
        if request.path not in self.answers:
            return Answer(404, b'{"message": "no such image"}')
        return Answer(200, self.answers[request.path])


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "docker.sock"


@pytest.fixture
def store(tmp_path: Path, socket: Path) -> ImageStore:
    return ImageStore(tmp_path / "store", docker_socket=socket)


async def test_an_image_of_the_engine(store: ImageStore, socket: Path) -> None:
    engine = Engine(inspection())
    async with serve(engine, socket):
        digest = await store.resolve(REFERENCE)
        assert engine.asked == [f"{PATH}/json"]
        image = await store.pull(REFERENCE, digest, ignore)
    assert (image.layers[0] / "file").read_bytes() == b"x"
    assert image.size == len(LAYER)


async def test_an_engine_that_keeps_images_in_containerd(store: ImageStore, socket: Path) -> None:
    async with serve(Engine(inspection()), socket):
        digest = await store.resolve(REFERENCE)
    await asyncio.to_thread(socket.unlink, missing_ok=True)
    engine = Engine(inspection(Id=digest_of(b"an index"), Descriptor={"digest": digest_of(b"an index")}))
    async with serve(engine, socket):
        assert await store.resolve(REFERENCE) == digest


@pytest.mark.parametrize(
    ("reference", "inspected", "code", "reason"),
    [
        (
            "docker-daemon:other:1",
            inspection(),
            "InvalidContainerImage",
            "does not have docker.io/library/other:1",
        ),
        ("docker-daemon:demo:1.0", inspection(Architecture="arm64"), "InvalidContainerImage", "linux/arm64"),
        ("docker-daemon:demo:1.0", b"nonsense", "InvalidContainerImage", "not valid"),
    ],
)
async def test_refusals(
    store: ImageStore, socket: Path, reference: str, inspected: bytes, code: str, reason: str
) -> None:
    async with serve(Engine(inspected), socket):
        with pytest.raises(CupolaError, match=reason) as caught:
            await store.resolve(parse_reference(reference))
    assert caught.value.code == code


async def test_no_engine(store: ImageStore, socket: Path) -> None:
    with pytest.raises(CupolaError, match=f"engine at {socket} cannot be reached") as caught:
        await store.resolve(REFERENCE)
    assert caught.value.code == "ImagePullBackOff"


async def test_an_engine_that_breaks_off(store: ImageStore, socket: Path) -> None:
    async with serve(lambda request: Answer(200, inspection(), sent=10), socket):
        with pytest.raises(CupolaError, match="broke off") as caught:
            await store.resolve(REFERENCE)
    assert caught.value.code == "ImagePullBackOff"
