"""The contract of `cupola.sandbox.base`, held by every driver. A new driver adds itself to `HARNESSES` and passes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import shutil
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cupola.sandbox.base import MIB, Driver, Exit, Sandbox, SandboxError, SandboxSpec
from cupola.sandbox.docker.driver import DockerDriver
from cupola.sandbox.fake import FakeDriver, FakeProcess
from cupola.sandbox.http import AgentClient
from cupola.sandbox.oci.driver import OciDriver
from tests.system.engine import PrivateEngine
from tests.system.node import MovingDriver, node_of
from tests.system.ordinary import OrdinaryUser
from tests.system.ordinary_node import GivingDriver, ordinary_node

PROGRAMS = Path(__file__).parent / "contract_programs"
ORDINARY = ("rootless", "rootless with version 2 beside version 1", "rootless with nothing delegated")
_numbers = itertools.count(1)


class Harness(ABC):
    """A driver and how to say "run this program" to it."""

    driver: Driver

    @abstractmethod
    def spec(self, program: str, directory: Path | None, *, memory: int = 256 * MIB) -> SandboxSpec:
        """A specification that runs one of the contract's programs."""

    async def start(self, program: str, directory: Path | None) -> tuple[Sandbox, Printed]:
        printed = Printed()
        return await self.driver.start(self.spec(program, directory), printed.take), printed


class Printed:
    """What a sandbox printed, by stream."""

    def __init__(self) -> None:
        self.streams = {"stdout": b"", "stderr": b""}

    def take(self, stream: str, data: bytes) -> None:
        self.streams[stream] += data


class FakeHarness(Harness):
    def __init__(self) -> None:
        self.driver = FakeDriver(
            {
                "serve": _serve,
                "polite": _polite,
                "stubborn": _stubborn,
                "fail": _fail,
                "note": _note,
                "tick": _tick,
                "claimed": _claimed,
            }
        )

    def spec(self, program: str, directory: Path | None, *, memory: int = 256 * MIB) -> SandboxSpec:
        return _spec((), (program,), directory, memory)


class OciHarness(Harness):
    def __init__(self, runtime: str, base: Path, run: Path, data: Path) -> None:
        self._base = base
        self.driver = OciDriver(f"test{os.getpid()}x{next(_numbers)}", run, data, runtime)

    def spec(self, program: str, directory: Path | None, *, memory: int = 256 * MIB) -> SandboxSpec:
        arguments = ("/nonexistent",) if program == "missing" else ("python3", "-u", f"/{program}.py")
        return _spec((self._base, PROGRAMS), arguments, directory, memory)


class DockerHarness(Harness):
    def __init__(self, base: Path, engine: Path) -> None:
        self._base = base
        self.driver = DockerDriver(f"test{os.getpid()}x{next(_numbers)}", engine)

    def spec(self, program: str, directory: Path | None, *, memory: int = 256 * MIB) -> SandboxSpec:
        arguments = ("/nonexistent",) if program == "missing" else ("python3", "-u", f"/{program}.py")
        return _spec((self._base, PROGRAMS), arguments, directory, memory)


def _spec(layers: tuple[Path, ...], arguments: tuple[str, ...], directory: Path | None, memory: int) -> SandboxSpec:
    return SandboxSpec(
        name=f"s-{next(_numbers)}",
        layers=layers,
        arguments=arguments,
        environment=(("PATH", "/usr/bin:/bin"), ("HOME", "/home/session")),
        working_directory="/",
        user="",
        home=None if directory is None else directory / "home",
        files=None if directory is None else directory / "files",
        cpu=1.0,
        memory=memory,
        channel=directory is None,
    )


class RootlessHarness(Harness):
    def __init__(self, driver: Driver, base: Path) -> None:
        self.driver = driver
        self._base = base

    def spec(self, program: str, directory: Path | None, *, memory: int = 256 * MIB) -> SandboxSpec:
        arguments = ("/nonexistent",) if program == "missing" else ("python3", "-u", f"/{program}.py")
        return _spec((self._base, PROGRAMS), arguments, directory, memory)


@pytest.fixture(params=["fake", "crun", "runc", "runsc", "node", *ORDINARY, "docker"])
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    if request.param == "fake":
        made: Harness = FakeHarness()
    elif request.param.startswith("rootless"):
        ordinary: OrdinaryUser = request.getfixturevalue("ordinary_user")
        base: Path = request.getfixturevalue("ordinary_root")
        with contextlib.ExitStack() as groups:
            delegated: tuple[Path, ...] = ()
            if request.param != "rootless with nothing delegated":
                hybrid = request.param != "rootless"
                if hybrid and not ordinary.has_hybrid:
                    pytest.skip("this host has one version of control groups")
                delegated = groups.enter_context(ordinary.delegated(hybrid=hybrid))
            folder = ordinary.directory(tmp_path / "node")
            what = ordinary.request(folder, (base, PROGRAMS), delegated)
            async with ordinary_node(folder, what, f"test{os.getpid()}x{next(_numbers)}") as node:
                made = RootlessHarness(GivingDriver(node.driver, folder), base)
                async with _opened(made):
                    yield made
        return
    elif request.param == "docker":
        engine: PrivateEngine = request.getfixturevalue("engine")
        made = DockerHarness(request.getfixturevalue("base_root"), engine.socket)
    else:
        if os.geteuid() != 0:
            pytest.skip("the oci driver needs root")
        runtime = "crun" if request.param == "node" else request.param
        if shutil.which(runtime) is None:
            pytest.skip(f"{runtime} is not installed")
        made = OciHarness(runtime, request.getfixturevalue("base_root"), tmp_path / "run", tmp_path / "data")
    async with contextlib.AsyncExitStack() as stack:
        if request.param == "node":
            node = await stack.enter_async_context(node_of(made.driver, tmp_path))
            made.driver = MovingDriver(node.driver, tmp_path)
        async with _opened(made):
            yield made


@contextlib.asynccontextmanager
async def _opened(harness: Harness) -> AsyncIterator[None]:
    await harness.driver.open()
    yield
    for name in await harness.driver.names():
        await harness.driver.stop(name, 0)
    await harness.driver.close()


async def test_a_started_sandbox_can_be_reached_and_stopped(harness: Harness, tmp_path: Path) -> None:
    sandbox, _ = await harness.start("serve", tmp_path)
    assert sandbox.name in await harness.driver.names()
    assert await _get(sandbox, b"/ping") == b"pong"
    await harness.driver.stop(sandbox.name, 0)
    assert sandbox.exited.done()
    assert await harness.driver.names() == frozenset()


async def test_output_is_taken_from_the_first_byte_to_the_last(harness: Harness, tmp_path: Path) -> None:
    sandbox, printed = await harness.start("fail", tmp_path)
    ended = await asyncio.wait_for(sandbox.exited, 10)
    await harness.driver.stop(sandbox.name, 0)
    assert ended == Exit(3)
    assert printed.streams["stdout"] == b"first line\n"
    assert printed.streams["stderr"] == b"last line\n"


async def test_a_polite_sandbox_ends_by_itself_on_sigterm(harness: Harness, tmp_path: Path) -> None:
    sandbox, printed = await harness.start("polite", tmp_path)
    await _printed(printed, b"ready\n")
    await harness.driver.stop(sandbox.name, 20)
    assert sandbox.exited.result() == Exit(0)
    assert printed.streams["stdout"] == b"ready\nbye\n"


async def test_a_stubborn_sandbox_is_killed_after_the_grace(harness: Harness, tmp_path: Path) -> None:
    sandbox, printed = await harness.start("stubborn", tmp_path)
    await _printed(printed, b"ready\n")
    await harness.driver.stop(sandbox.name, 0.2)
    assert sandbox.exited.result().code == -9
    assert await harness.driver.names() == frozenset()


async def test_hurry_cuts_the_grace_short(harness: Harness, tmp_path: Path) -> None:
    sandbox, printed = await harness.start("stubborn", tmp_path)
    await _printed(printed, b"ready\n")
    stopping = asyncio.create_task(harness.driver.stop(sandbox.name, 600))
    await asyncio.sleep(0)
    harness.driver.hurry()
    await asyncio.wait_for(stopping, 20)
    assert sandbox.exited.result().code == -9


async def test_stopping_what_is_not_there_is_fine(harness: Harness, tmp_path: Path) -> None:
    sandbox, _ = await harness.start("serve", tmp_path)
    await asyncio.gather(*(harness.driver.stop(sandbox.name, 0) for _ in range(3)))
    await harness.driver.stop(sandbox.name, 0)
    await harness.driver.stop("s-unknown", 0)
    assert await harness.driver.names() == frozenset()


async def test_a_failed_start_leaves_nothing(harness: Harness, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="entry point cannot be executed"):
        await harness.start("missing", tmp_path)
    assert await harness.driver.names() == frozenset()


@pytest.mark.parametrize("moment", [0.0, 0.002, 0.008, 0.02])
async def test_a_cancelled_start_leaves_nothing(harness: Harness, tmp_path: Path, moment: float) -> None:
    starting = asyncio.create_task(harness.start("serve", tmp_path))
    await asyncio.wait({starting}, timeout=moment)
    if not starting.cancel():
        await harness.driver.stop(starting.result()[0].name, 0)
    await asyncio.gather(starting, return_exceptions=True)
    assert await harness.driver.names() == frozenset()


async def test_a_cancelled_stop_still_removes_everything(harness: Harness, tmp_path: Path) -> None:
    for moment in (0.0, 0.001, 0.004, 0.01):
        sandbox, _ = await harness.start("serve", tmp_path)
        stopping = asyncio.create_task(harness.driver.stop(sandbox.name, 0))
        await asyncio.wait({stopping}, timeout=moment)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
        if moment > 0:
            assert await harness.driver.names() == frozenset()
        await harness.driver.stop(sandbox.name, 0)


async def test_the_home_directory_outlives_the_sandbox(harness: Harness, tmp_path: Path) -> None:
    for expected in (b"1\n", b"2\n", b"3\n"):
        sandbox, printed = await harness.start("note", tmp_path)
        await asyncio.wait_for(sandbox.exited, 10)
        await harness.driver.stop(sandbox.name, 0)
        assert printed.streams["stdout"] == expected


async def test_a_frozen_sandbox_stands_still_until_it_is_thawed(harness: Harness, tmp_path: Path) -> None:
    if not harness.driver.can_freeze:
        pytest.skip("the driver does not declare it")
    sandbox, printed = await harness.start("tick", tmp_path)
    await _printed(printed, b"tick\n" * 3)
    await harness.driver.freeze(sandbox.name)
    before = -1
    # What it printed before may still be on its way.
    async with asyncio.timeout(20):
        while before != len(printed.streams["stdout"]):
            before = len(printed.streams["stdout"])
            await asyncio.sleep(0.2)
    harness.driver.thaw(sandbox.name)
    await _printed(printed, b"tick\n" * (before // 5 + 3))
    await harness.driver.stop(sandbox.name, 0)
    await harness.driver.freeze(sandbox.name)
    harness.driver.thaw(sandbox.name)
    assert await harness.driver.names() == frozenset()


async def test_a_frozen_sandbox_can_be_connected_and_answers_once_it_is_thawed(
    harness: Harness, tmp_path: Path
) -> None:
    sandbox, _ = await harness.start("serve", tmp_path)
    assert await _get(sandbox, b"/ping") == b"pong"
    await harness.driver.freeze(sandbox.name)
    asking = asyncio.create_task(_get(sandbox, b"/ping"))
    if harness.driver.can_freeze and not isinstance(harness, FakeHarness):
        await asyncio.sleep(0.05)
        assert not asking.done()
    harness.driver.thaw(sandbox.name)
    assert await asking == b"pong"


async def test_a_frozen_sandbox_hears_the_sigterm_when_it_is_stopped(harness: Harness, tmp_path: Path) -> None:
    sandbox, printed = await harness.start("polite", tmp_path)
    await _printed(printed, b"ready\n")
    await harness.driver.freeze(sandbox.name)
    await harness.driver.stop(sandbox.name, 20)
    assert sandbox.exited.result() == Exit(0)
    assert printed.streams["stdout"] == b"ready\nbye\n"


async def test_a_frozen_sandbox_can_be_killed(harness: Harness, tmp_path: Path) -> None:
    sandbox, _ = await harness.start("serve", tmp_path)
    await harness.driver.freeze(sandbox.name)
    await harness.driver.stop(sandbox.name, 0)
    assert sandbox.exited.result() == Exit(-9)
    assert await harness.driver.names() == frozenset()


async def test_directories_and_input_can_be_given_to_a_running_sandbox(harness: Harness, tmp_path: Path) -> None:
    if not harness.driver.can_attach:
        pytest.skip("the driver does not declare it")
    sandbox, printed = await harness.start("claimed", None)
    await _printed(printed, b"ready\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "note").write_text("from the session")
    await harness.driver.attach(sandbox.name, tmp_path / "home", tmp_path / "files")
    assert sandbox.channel is not None
    with sandbox.channel:
        sandbox.channel.send(b"hello\n")
        await _printed(printed, b"done\n")
    assert (tmp_path / "files" / "answer").read_text() == "hello from the session"
    await harness.driver.stop(sandbox.name, 0)
    with pytest.raises(SandboxError, match="has ended"):
        await harness.driver.attach(sandbox.name, tmp_path / "home", tmp_path / "files")
    assert (tmp_path / "home" / "note").exists()


async def test_directories_are_given_whole_even_when_nobody_waits_for_it(harness: Harness, tmp_path: Path) -> None:
    if not harness.driver.can_attach:
        pytest.skip("the driver does not declare it")
    sandbox, printed = await harness.start("claimed", None)
    await _printed(printed, b"ready\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "note").write_text("from the session")
    attaching = asyncio.ensure_future(harness.driver.attach(sandbox.name, tmp_path / "home", tmp_path / "files"))
    await asyncio.sleep(0)
    attaching.cancel()
    await asyncio.gather(attaching, return_exceptions=True)
    assert sandbox.channel is not None
    with sandbox.channel:
        sandbox.channel.send(b"hello\n")
        await _printed(printed, b"done\n")
    assert (tmp_path / "files" / "answer").read_text() == "hello from the session"


async def test_files_that_are_older_than_their_user_become_the_users(harness: Harness, tmp_path: Path) -> None:
    if not isinstance(harness, OciHarness):
        pytest.skip("its sandboxes have no users of their own, or files have none")
    (tmp_path / "home" / "inner").mkdir(parents=True)
    (tmp_path / "home" / "inner" / "file").write_text("before")
    (tmp_path / "outside").write_text("not yours")
    (tmp_path / "home" / "link").symlink_to(tmp_path / "outside")
    spec = dataclasses.replace(harness.spec("note", tmp_path), user="1000:1000")
    printed = Printed()
    sandbox = await harness.driver.start(spec, printed.take)
    await asyncio.wait_for(sandbox.exited, 10)
    await harness.driver.stop(sandbox.name, 0)
    assert printed.streams["stdout"] == b"1\n"
    home, files = (tmp_path / "home").resolve(), (tmp_path / "files").resolve()
    for path in (home, files, home / "inner", home / "inner" / "file", home / "link"):
        assert path.lstat().st_uid == 1000, path
    assert (tmp_path / "outside").stat().st_uid == os.getuid()


async def test_many_sandboxes_at_once(harness: Harness, tmp_path: Path) -> None:
    started = await asyncio.gather(*(harness.start("serve", tmp_path / str(number)) for number in range(6)))
    answers = await asyncio.gather(*(_get_when_up(sandbox, b"/ping") for sandbox, _ in started))
    assert answers == [b"pong"] * 6
    await asyncio.gather(*(harness.driver.stop(sandbox.name, 0) for sandbox, _ in started))
    assert await harness.driver.names() == frozenset()


async def _get(sandbox: Sandbox, target: bytes) -> bytes:
    return await asyncio.wait_for(_get_when_up(sandbox, target), 20)


async def _get_when_up(sandbox: Sandbox, target: bytes) -> bytes:
    opened = sandbox.open_socket()
    while opened.connect_ex(sandbox.address) not in (0, 106):
        await asyncio.sleep(0.002)
    client = AgentClient(sandbox)
    await client.adopt(opened)
    async with await client.request(b"GET", target, []) as response:
        body = await response.read(1000)
    client.close()
    return body


async def _printed(printed: Printed, text: bytes) -> None:
    async with asyncio.timeout(20):
        while text not in printed.streams["stdout"]:
            await asyncio.sleep(0.005)


# The contract's programs, for the driver that runs coroutines. The others run the files of `contract_programs/`.


async def _serve(process: FakeProcess) -> int:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npong")
        await writer.drain()
        await reader.read()
        writer.close()
        await writer.wait_closed()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        process.port = listening.getsockname()[1]
        async with await asyncio.start_server(answer, sock=listening) as server:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                server.close()
                if sys.version_info >= (3, 13):
                    server.close_clients()
    return 0


async def _polite(process: FakeProcess) -> int:
    process.handles_sigterm = True
    process.print("stdout", b"ready\n")
    await process.terminate.wait()
    process.print("stdout", b"bye\n")
    return 0


async def _stubborn(process: FakeProcess) -> int:
    process.handles_sigterm = True
    process.print("stdout", b"ready\n")
    await asyncio.get_running_loop().create_future()
    return 0


async def _fail(process: FakeProcess) -> int:
    process.print("stdout", b"first line\n")
    process.print("stderr", b"last line\n")
    return 3


async def _note(process: FakeProcess) -> int:
    assert process.home is not None
    file = process.home / "count"
    number = int(file.read_text()) + 1 if file.exists() else 1
    file.write_text(str(number))
    process.print("stdout", f"{number}\n".encode())
    return 0


async def _tick(process: FakeProcess) -> int:
    while True:
        await process.running.wait()
        process.print("stdout", b"tick\n")
        await asyncio.sleep(0.005)


async def _claimed(process: FakeProcess) -> int:
    process.print("stdout", b"ready\n")
    assert process.standard_input is not None
    word = (await asyncio.get_running_loop().sock_recv(process.standard_input, 100)).decode().strip()
    assert process.home is not None
    assert process.files is not None
    (process.files / "answer").write_text(f"{word} {(process.home / 'note').read_text()}")
    process.print("stdout", b"done\n")
    return 0
