"""A server and its node, in one process and with sandboxes that are coroutines."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.images.model import Image, ImageConfig
from cupola.images.reference import parse_reference
from cupola.node.client import NodeLost
from cupola.node.frames import Connection
from cupola.node.process import Node, Parts, Sockets, serve_node
from cupola.sandbox.base import Driver, Exit, Sandbox, SandboxError, SandboxSpec
from cupola.sandbox.fake import FakeDriver, FakeProcess
from cupola.sessions.file_listing import NamePage
from cupola.sessions.volumes import LocalVolumes
from tests.unit.node.test_messages import spec
from tests.unit.sessions.world import Images


async def talks(process: FakeProcess) -> int:
    process.print("stdout", b"hello\n")
    process.print("stderr", b"oh\n")
    process.print("status", b"a line of the platform\n")
    return 3


async def waits(process: FakeProcess) -> int:
    await asyncio.Event().wait()
    return 0


async def echoes(process: FakeProcess) -> int:
    assert process.standard_input is not None
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(process.standard_input, await loop.sock_recv(process.standard_input, 100))
    return 0


class StuckImages(Images):
    """A registry that never answers."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.asked = asyncio.Event()
        self.given_up = False

    async def resolve(self, reference: object) -> str:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.given_up = True
        return ""


class Pair:
    def __init__(self, folder: Path, images: Images) -> None:
        self.folder = folder
        self.images = images
        self.inner = FakeDriver({"talks": talks, "waits": waits, "echoes": echoes})
        self.server_end, self.node_end = Sockets.pairs()
        volumes, trials = LocalVolumes(folder / "volumes"), LocalVolumes(folder / "trials")
        parts = Parts(self.inner, images, {"volumes": volumes, "trials": trials})
        self.serving = asyncio.create_task(serve_node(self.node_end, folder, parts))
        self.node = Node(self.server_end, folder)
        self.running = asyncio.create_task(self.node.run())

    def spec(self, program: str, **fields: object) -> SandboxSpec:
        home = self.folder / "volumes" / "own" / "home"
        return spec(**{"layers": (), "arguments": (program,), "home": home, "files": home.with_name("files"), **fields})

    async def start(self, program: str, **fields: object) -> tuple[Sandbox, list[tuple[str, bytes]]]:
        printed: list[tuple[str, bytes]] = []
        driver: Driver = self.node.driver
        return await driver.start(self.spec(program, **fields), lambda *item: printed.append(item)), printed


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path, Images(tmp_path / "images"))
    async with asyncio.timeout(20):
        await pair.node.driver.open()
        yield pair
        pair.node.close()
        await asyncio.gather(pair.serving, pair.running)


async def test_a_sandbox_prints_and_ends(pair: Pair) -> None:
    sandbox, printed = await pair.start("talks")
    assert await sandbox.exited == Exit(3)
    await pair.node.driver.stop(sandbox.name, 0)
    assert printed == [("stdout", b"hello\n"), ("stderr", b"oh\n"), ("status", b"a line of the platform\n")]
    assert await pair.node.driver.names() == frozenset()


async def test_a_sandbox_that_cannot_be_made_says_why(pair: Pair) -> None:
    with pytest.raises(SandboxError, match="the entry point cannot be executed: missing"):
        await pair.start("missing")


async def test_a_channel_leads_to_the_sandbox(pair: Pair) -> None:
    sandbox, _ = await pair.start("echoes", channel=True, home=None, files=None)
    assert sandbox.channel is not None
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sandbox.channel, b"ping")
    assert await loop.sock_recv(sandbox.channel, 100) == b"ping"
    sandbox.channel.close()
    await pair.node.driver.stop(sandbox.name, 0)


async def test_a_server_that_goes_takes_its_sandboxes_along(pair: Pair) -> None:
    await pair.start("waits")
    assert len(await pair.inner.names()) == 1
    pair.node.close()
    await pair.serving
    assert await pair.inner.names() == frozenset()


async def test_a_server_that_cannot_be_understood_is_left(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    sandbox, _ = await pair.start("waits")
    pair.node._client._connection.send(b"nonsense")
    await pair.serving
    assert "not understood" in caplog.text
    assert await pair.inner.names() == frozenset()
    # The server sees that its node has gone.
    assert (await sandbox.exited).reason.startswith("the part of the server that makes sandboxes")
    with pytest.raises(NodeLost):
        await pair.start("waits")


async def test_images_are_the_nodes(pair: Pair) -> None:
    reference = parse_reference("registry.example.com/serve:1")
    digest = await pair.node.images.resolve(reference)
    steps: list[tuple[str, str]] = []
    assert await pair.node.images.load(digest) is None
    pulled = await pair.node.images.pull(reference, digest, lambda *step: steps.append(step))
    assert steps == [("pull", f"Reading {reference}"), ("unpack", "Unpacked 1 layer")]
    assert pulled == await pair.node.images.load(digest) == pair.images.stored[digest]
    pair.images.missing.add("serve")
    with pytest.raises(CupolaError, match="There is no image") as refused:
        await pair.node.images.resolve(reference)
    assert (refused.value.code, refused.value.status) == ("InvalidContainerImage", 400)


async def test_layers_of_images_can_be_named(pair: Pair) -> None:
    layer = pair.folder / "images" / "layers" / ("b" * 64)
    config = ImageConfig(("main",), (), (), "/", "", None, ())
    pair.images.stored["digest"] = Image("digest", (layer,), config, 1)
    found = await pair.node.images.load("digest")
    assert found is not None
    assert found.layers == (layer,)


async def test_what_nobody_expected_stays_in_the_log(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    config = ImageConfig(("main",), (), (), "/", "", None, ())
    pair.images.stored["digest"] = Image("digest", (Path("/elsewhere"),), config, 1)
    with pytest.raises(CupolaError, match="the server's log has it under the reference") as failed:
        await pair.node.images.load("digest")
    assert failed.value.status == 500
    assert "elsewhere" not in failed.value.message
    assert "elsewhere" in caplog.text


async def test_a_request_that_is_given_up_ends_in_the_node(tmp_path: Path) -> None:
    images = StuckImages(tmp_path / "images")
    pair = Pair(tmp_path, images)
    resolving = asyncio.create_task(pair.node.images.resolve(parse_reference("registry.example.com/serve:1")))
    await asyncio.wait_for(images.asked.wait(), 10)
    resolving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resolving
    assert images.given_up
    pair.node.close()
    await asyncio.gather(pair.serving, pair.running)


async def test_a_request_that_is_given_up_at_once_is_answered(pair: Pair) -> None:
    resolving = asyncio.create_task(pair.node.images.resolve(parse_reference("registry.example.com/serve:1")))
    await asyncio.sleep(0)
    resolving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await resolving


async def test_files_are_the_nodes(pair: Pair) -> None:
    files = pair.node.volumes.files("session-1")

    def use() -> None:
        files.create()
        assert files.make_directory((b"inner",))
        assert not files.make_directory((b"inner",))
        upload = files.upload((b"inner", b"file"))
        upload.open()
        upload.write(b"con")
        upload.write(b"tent")
        assert files.list_directory((b"inner",), NamePage(10))[0] == ()
        upload.finish()
        upload.close()
        assert upload.size == 7
        assert [entry.name for entry in files.list_directory((b"inner",), NamePage(10))[0]] == ["file"]
        assert files.stat((b"inner", b"file")).size == 7
        download = files.download((b"inner", b"file"))
        download.open()
        assert (download.size, download.read(3, 100)) == (7, b"tent")
        download.close()
        with pytest.raises(CupolaError, match="not empty") as refused:
            files.remove((b"inner",), False, 1)
        assert refused.value.status == 409
        assert files.remove((b"inner",), True, 1)
        with pytest.raises(CupolaError) as missing:
            files.download((b"inner", b"file")).open()
        assert missing.value.status == 404

    await asyncio.to_thread(use)
    assert (pair.folder / "volumes" / "session-1" / "home").is_dir()


async def test_an_upload_that_is_broken_off_leaves_nothing(pair: Pair) -> None:
    files = pair.node.volumes.files("session-1")

    def begin() -> None:
        files.create()
        for name in (b"closed", b"left"):
            upload = files.upload((name,))
            upload.open()
            upload.write(b"half")
            if name == b"closed":
                upload.close()

    await asyncio.to_thread(begin)
    home = pair.folder / "volumes" / "session-1" / "home"
    assert len(list(home.iterdir())) == 1
    pair.node.close()
    await pair.serving
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "a/b", "", "A", "x" * 65])
async def test_volumes_have_names_and_no_paths(pair: Pair, name: str) -> None:
    outside = pair.folder / "outside"
    outside.mkdir()
    with pytest.raises(CupolaError) as refused:
        await asyncio.to_thread(pair.node.volumes.remove, name)
    assert refused.value.status == 500
    assert outside.exists()


async def test_volumes_are_removed(pair: Pair) -> None:
    for kind in ("volumes", "trials"):
        for name in ("one", "two", "three"):
            (pair.folder / kind / name / "home").mkdir(parents=True)
    await asyncio.to_thread(pair.node.volumes.remove, "one")
    await asyncio.to_thread(pair.node.volumes.remove, "one")
    assert {path.name for path in (pair.folder / "volumes").iterdir()} == {"two", "three"}
    await asyncio.to_thread(pair.node.volumes.remove_all_but, {"three"})
    assert {path.name for path in (pair.folder / "volumes").iterdir()} == {"three"}
    await asyncio.to_thread(pair.node.trials.remove_all_but, ())
    assert list((pair.folder / "trials").iterdir()) == []


async def test_a_frame_that_is_cut_off_ends_the_node(tmp_path: Path) -> None:
    server_end, node_end = Sockets.pairs()
    parts = Parts(
        FakeDriver({}), Images(tmp_path), {"volumes": LocalVolumes(tmp_path), "trials": LocalVolumes(tmp_path)}
    )
    serving = asyncio.create_task(serve_node(node_end, tmp_path, parts))
    server_end.connection.send(b"\x00\x00")
    for lane in server_end.lanes:
        lane.shutdown(socket.SHUT_RDWR)
    Connection(server_end.connection).close()
    await asyncio.wait_for(serving, 10)
    server_end.close()
