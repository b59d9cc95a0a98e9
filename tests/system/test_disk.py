"""What sandboxes keep on the disk is limited, and the disk never becomes full."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cupola.sandbox.base import MIB, Exit, SandboxError, SandboxSpec
from cupola.sandbox.oci import linux
from cupola.sandbox.oci.driver import OciDriver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the oci driver needs root")

LIMIT = 64 * MIB
SMALL = 1024 * MIB
PATIENCE = 60

WRITE = """
import os, time
file = open({path!r}, "wb", buffering=0)
{then}
for _ in range({mebibytes}):
    file.write(os.urandom(1 << 20))
    time.sleep(0.001)
print("written", flush=True)
time.sleep(600)
"""
MANY = """
import os, time
os.mkdir("/files/many")
for number in range({files}):
    os.close(os.open(f"/files/many/{{number}}", os.O_CREAT | os.O_WRONLY))
print("written", flush=True)
time.sleep(600)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a gigabyte."""
    image, mounted = tmp_path / "disk.img", tmp_path / "disk"
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("no mkfs.ext4: install e2fsprogs")
    with image.open("wb") as file:
        file.truncate(SMALL)
    mounted.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    if subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True, check=False).returncode != 0:
        pytest.skip("no loop devices")
    yield mounted
    linux.unmount(str(mounted))


@asynccontextmanager
async def opened(folder: Path, limit: int, reserve: int) -> AsyncIterator[OciDriver]:
    driver = OciDriver(f"disk{os.getpid()}", folder / "run", folder / "data", None, None, limit, reserve)
    await driver.open()
    try:
        yield driver
    finally:
        for name in await driver.names():
            await driver.stop(name, 0)
        await driver.close()


Specify = Callable[..., SandboxSpec]


@pytest.fixture
def specify(base_root: Path) -> Specify:
    def make(program: str, session: Path, name: str = "writes") -> SandboxSpec:
        return SandboxSpec(
            name=name, layers=(base_root,), arguments=("python3", "-u", "-c", program),
            environment=(("PATH", "/usr/bin:/bin"),), working_directory="/", user="",
            home=session / "home", files=session / "files", cpu=1.0, memory=256 * MIB,
        )  # fmt: skip

    return make


async def end_of(driver: OciDriver, spec: SandboxSpec) -> Exit:
    sandbox = await driver.start(spec, lambda *_: None)
    ended = await asyncio.wait_for(sandbox.exited, PATIENCE)
    await driver.stop(spec.name, 0)
    return ended


async def starts_and_says(driver: OciDriver, spec: SandboxSpec, text: bytes) -> asyncio.Future[Exit]:
    printed = bytearray()
    sandbox = await driver.start(spec, lambda _, data: printed.extend(data))
    async with asyncio.timeout(PATIENCE):
        while text not in printed and not sandbox.exited.done():
            await asyncio.sleep(0.01)
    return sandbox.exited


@pytest.mark.parametrize(
    ("path", "then"),
    [
        ("/root/large", ""),
        ("/home/session/large", ""),
        ("/files/large", ""),
        ("/root/hidden", "os.unlink(file.name)"),
        ("/files/hidden", "os.unlink(file.name)"),
    ],
)
async def test_who_keeps_more_than_the_limit_is_stopped(
    small_disk: Path, specify: Specify, path: str, then: str
) -> None:
    async with opened(small_disk, LIMIT, 0) as driver:
        ended = await end_of(driver, specify(WRITE.format(path=path, then=then, mebibytes=400), small_disk / "s"))
    assert ended == Exit(-9, reason="it kept more than 64 MiB on the disk, the limit of a session")
    assert str(ended).startswith("was stopped because it kept more than 64 MiB")


async def test_who_keeps_more_files_than_fit_is_stopped(small_disk: Path, specify: Specify) -> None:
    async with opened(small_disk, LIMIT, 0) as driver:
        ended = await end_of(driver, specify(MANY.format(files=100_000), small_disk / "s"))
    assert "on the disk" in ended.reason


async def test_who_stays_below_the_limit_is_not_stopped(small_disk: Path, specify: Specify) -> None:
    program = WRITE.format(path="/files/large", then="file.seek(1 << 40)", mebibytes=40)
    async with opened(small_disk, LIMIT, 0) as driver:
        exited = await starts_and_says(driver, specify(program, small_disk / "s"), b"written")
        await asyncio.wait([exited], timeout=2)
        assert not exited.done()


async def test_a_session_whose_files_are_too_large_starts_again_once_some_are_gone(
    small_disk: Path, specify: Specify
) -> None:
    session = small_disk / "s"
    spec = specify(WRITE.format(path="/files/large", then="", mebibytes=400), session)
    async with opened(small_disk, LIMIT, 0) as driver:
        await end_of(driver, spec)
        with pytest.raises(SandboxError, match="more than the 64 MiB of the setting session_disk"):
            await driver.start(spec, lambda *_: None)
        assert await driver.names() == frozenset()
        (session / "files" / "large").unlink()
        await starts_and_says(driver, replace(spec, arguments=("busybox", "echo", "again")), b"again")


@pytest.mark.parametrize(
    "program",
    [
        WRITE.format(path="/files/large", then="", mebibytes=2000),
        WRITE.format(path="/root/hidden", then="os.unlink(file.name)", mebibytes=2000),
        MANY.format(files=100_000),
    ],
    ids=["bytes", "removed", "inodes"],
)
async def test_a_disk_bomb_never_fills_the_disk(small_disk: Path, specify: Specify, program: str) -> None:
    async with opened(small_disk, 0, 300 * MIB) as driver:
        quiet = await starts_and_says(
            driver, specify("print('here'); import time; time.sleep(600)", small_disk / "q", "quiet"), b"here"
        )
        ended = await end_of(driver, specify(program, small_disk / "s"))
        left = os.statvfs(small_disk)
        assert "the disk of the platform is nearly full" in ended.reason
        assert not quiet.done()
        assert left.f_bavail > 0
        assert left.f_favail > 0


async def test_nothing_starts_while_the_disk_is_full(small_disk: Path, specify: Specify) -> None:
    async with opened(small_disk, 0, 10 * SMALL) as driver:
        with pytest.raises(SandboxError, match="disk_reserve"):
            await driver.start(specify("print()", small_disk / "s"), lambda *_: None)
        assert await driver.names() == frozenset()
