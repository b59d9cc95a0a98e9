"""The checks of a living `oci` driver: limits are set and enforced, and a stop leaves nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from cupola.sandbox.base import MIB, Driver, Exit, Sandbox, SandboxError, SandboxSpec
from cupola.sandbox.oci import linux
from cupola.sandbox.oci.cgroup import ControlGroups, find_hierarchies
from cupola.sandbox.oci.driver import OciDriver
from cupola.sandbox.oci.runtime_config import PIDS_LIMIT
from cupola.sandbox.oci.sandbox import OciSandbox

PROJECT = Path(__file__).parents[2]
PROGRAMS = (PROJECT / "tests/system/contract_programs", PROJECT / "tests/vm/programs")
WORK = Path("/run/vm")
LAYERS = (Path("/"), WORK / "programs")
"""The machine's own root has Python in it. As no layer may lie in another, the programs are outside of it."""
DATA = WORK / "data"
INSTALLATION = "vm"
GROUP = f"cupola-{INSTALLATION}"

MEMORY = 256 * MIB
QUOTA = 8 * MIB
PATIENCE = 30.0
ROUNDS = 50

LIMITS_V1 = {
    "cpu/cpu.cfs_period_us": "100000",
    "cpu/cpu.cfs_quota_us": "50000",
    "memory/memory.limit_in_bytes": str(MEMORY),
    "memory/memory.memsw.limit_in_bytes": str(MEMORY),
    "pids/pids.max": str(PIDS_LIMIT),
}
LIMITS_V2 = {
    "cpu.max": "50000 100000",
    "memory.max": str(MEMORY),
    "memory.swap.max": "0",
    "pids.max": str(PIDS_LIMIT),
}


def specify(program: str, *, memory: int = MEMORY) -> SandboxSpec:
    return SandboxSpec(
        name=f"s-{program}",
        layers=LAYERS,
        arguments=("python3", "-u", f"/{program}.py"),
        environment=(("PATH", "/usr/bin:/bin"), ("HOME", "/home/session")),
        working_directory="/",
        user="",
        home=WORK / "home",
        files=WORK / "files",
        cpu=0.5,
        memory=memory,
    )


@asynccontextmanager
async def running(driver: Driver, program: str, *, memory: int = MEMORY) -> AsyncIterator[tuple[OciSandbox, bytearray]]:
    """A sandbox and what it prints; it is stopped in the end."""
    printed = bytearray()
    sandbox = await driver.start(specify(program, memory=memory), lambda _, data: printed.extend(data))
    assert isinstance(sandbox, OciSandbox)
    try:
        yield sandbox, printed
    finally:
        await driver.stop(sandbox.name, 0)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def same(actual: object, expected: object) -> None:
    assert actual == expected, f"{actual!r} instead of {expected!r}"


async def reachable(driver: Driver) -> None:
    async with running(driver, "serve") as (sandbox, _):
        await until(lambda: 8088 in sandbox.listening_ports())
        same(await driver.names(), {sandbox.name})
        assert await _ping(sandbox)
        await driver.stop(sandbox.name, 0)
        same(sandbox.exited.result(), Exit(-signal.SIGKILL))


async def _ping(sandbox: Sandbox) -> bool:
    opened = sandbox.open_socket()
    await asyncio.get_running_loop().sock_connect(opened, sandbox.address)
    reader, writer = await asyncio.open_connection(sock=opened)
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.endswith(b"pong")


async def limits_are_set(driver: Driver) -> None:
    async with running(driver, "serve") as (sandbox, _):
        limits = LIMITS_V1 if find_hierarchies().unified is None else LIMITS_V2
        same({file: _in_group(sandbox, file).read_text().strip() for file in limits}, limits)
        for file in limits:
            members = _in_group(sandbox, file).with_name("cgroup.procs").read_text().split()
            same(members, [str(sandbox.pid)])


async def cpu_quota(driver: Driver) -> None:
    async with running(driver, "spin") as (sandbox, _):
        statistics = _in_group(sandbox, "cpu/cpu.stat" if find_hierarchies().unified is None else "cpu.stat")
        await until(lambda: "nr_throttled 0" not in statistics.read_text().splitlines())


def _in_group(sandbox: Sandbox, file: str) -> Path:
    """The file of the sandbox's group; below `/sys/fs/cgroup`, version 1 has a folder for each controller."""
    folder, _, name = file.rpartition("/")
    return Path("/sys/fs/cgroup") / folder / GROUP / sandbox.name / name


async def memory_limit(driver: Driver) -> None:
    async with running(driver, "eat", memory=64 * MIB) as (sandbox, _):
        ended = await asyncio.wait_for(asyncio.shield(sandbox.exited), PATIENCE)
        same(ended, Exit(-signal.SIGKILL, out_of_memory=True))


async def pids_limit(driver: Driver) -> None:
    async with running(driver, "fork", memory=512 * MIB) as (_, printed):
        await until(lambda: b"\n" in printed)
        same(printed.decode(), f"{PIDS_LIMIT - 1} EAGAIN\n")


async def devices(driver: Driver) -> None:
    async with running(driver, "device") as (sandbox, printed):
        node = f"/proc/{sandbox.pid}/root/dev/forbidden"
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(4, 64))
        await until(lambda: b"\n" in printed or sandbox.exited.done())
        same(printed.decode(), "EPERM\n")


async def sigterm(driver: Driver) -> None:
    async with running(driver, "polite") as (sandbox, printed):
        await until(lambda: b"ready\n" in printed)
        await driver.stop(sandbox.name, PATIENCE)
        same(sandbox.exited.result(), Exit(0))
        same(printed.decode(), "ready\nbye\n")


async def sigkill_after_grace(driver: Driver) -> None:
    async with running(driver, "stubborn") as (sandbox, printed):
        await until(lambda: b"ready\n" in printed)
        await driver.stop(sandbox.name, 0.2)
        same(sandbox.exited.result(), Exit(-signal.SIGKILL))


async def vanishing_groups(_: Driver) -> None:
    """Groups go while they are looked at: during a stop the end is noticed, and a runtime may clean up."""
    hierarchies = find_hierarchies()
    groups = ControlGroups(GROUP, hierarchies)
    for _round in range(ROUNDS):
        for root in hierarchies.roots:
            (root / GROUP / "s-vanishing").mkdir()
        removals = [asyncio.create_task(asyncio.to_thread(groups.remove, "s-vanishing")) for _ in range(2)]
        while not all(removal.done() for removal in removals):
            groups.out_of_memory_kills("s-vanishing")
            await asyncio.sleep(0)
        await asyncio.gather(*removals)


async def failed_start(driver: Driver) -> None:
    """A start that the runtime gives up when it has made the group already."""
    spec = replace(specify("serve"), arguments=("/nonexistent",))
    message = "it has been started"
    try:
        await driver.start(spec, lambda _stream, _data: None)
    except SandboxError as error:
        message = str(error)
    assert "entry point cannot be executed" in message, message


async def disk_quota(_: Driver) -> None:
    """A file system with project quotas holds sandboxes to the limit, and no sandbox can leave its project."""
    disk = WORK / "disk"
    disk.mkdir()
    mount = ["busybox", "mount", "-o", "loop,prjquota", str(PROJECT / "disk.img"), str(disk)]
    await asyncio.to_thread(lambda: subprocess.run(mount, check=True))
    driver = OciDriver("vmdisk", WORK / "run" / "vmdisk", disk / "data", session_disk=QUOTA)
    await driver.open()
    try:
        home, files = disk / "session" / "home", disk / "session" / "files"
        for _start in range(2):
            printed = bytearray()
            specification = replace(specify("fill"), home=home, files=files)
            await driver.start(specification, lambda _, data, printed=printed: printed.extend(data))  # type: ignore[misc]
            await until(lambda printed=printed: b"END\n" in printed)  # type: ignore[misc]
            places = [f"{place} EDQUOT" for place in ("/root", "/home/session", "/files") for _attempt in range(3)]
            same(printed.decode().splitlines(), [*places, "leave EPERM", "inherit EPERM", "moved done", "END"])
            await driver.stop(specification.name, 0)
        same(await driver.names(), frozenset())
    finally:
        await driver.close()
        linux.unmount(str(disk))
        shutil.rmtree(WORK / "run" / "vmdisk")
        disk.rmdir()


CHECKS = (
    reachable, limits_are_set, cpu_quota, memory_limit, pids_limit, devices, sigterm, sigkill_after_grace,
    failed_start, vanishing_groups, disk_quota,
)  # fmt: skip
