"""What the `docker` driver declares to keep apart is apart, and what is special about having an engine in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cupola.sandbox.base import MIB, Exit, Isolation, SandboxError, SandboxSpec
from cupola.sandbox.docker import engine as engine_module
from cupola.sandbox.docker.driver import DockerDriver
from cupola.sandbox.docker.rootfs import OPAQUE, merged
from cupola.sandbox.oci import linux
from cupola.sandbox.oci.mounts import mount_overlay
from tests.system.engine import EngineUnavailable, PrivateEngine, serve_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def driver(engine: PrivateEngine) -> AsyncIterator[DockerDriver]:
    made = DockerDriver(f"docker{os.getpid()}", engine.socket)
    await made.open()
    yield made
    for name in await made.names():
        await made.stop(name, 0)
    await made.close()
    assert engine.contents() == []


@pytest.fixture
def spec(base_root: Path, tmp_path: Path) -> SandboxSpec:
    return SandboxSpec(
        name="inside",
        layers=(base_root,),
        arguments=("python3", "-c", "import time; time.sleep(600)"),
        environment=(("PATH", "/usr/bin:/bin"), ("HOME", "/home/session")),
        working_directory="/",
        user="",
        home=tmp_path / "session" / "home",
        files=tmp_path / "session" / "files",
        cpu=0.5,
        memory=128 * MIB,
    )


async def run(driver: DockerDriver, spec: SandboxSpec) -> tuple[bytes, Exit]:
    """Run a sandbox to its end: what it printed, and how it ended."""
    printed: list[bytes] = []
    sandbox = await driver.start(spec, lambda _, data: printed.append(data))
    ended = await asyncio.wait_for(sandbox.exited, 60)
    await driver.stop(spec.name, 0)
    return b"".join(printed), ended


async def inside(driver: DockerDriver, spec: SandboxSpec, program: str) -> str:
    """What a Python program prints in a sandbox."""
    return (await run(driver, replace(spec, arguments=("python3", "-u", "-c", program))))[0].decode().strip()


WALLS = """
import ctypes, errno, json, os, resource, socket

def attempt(call):
    result = call()
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "done"

def connect(address):
    try:
        socket.create_connection((address, PORT), 2)
        return "reached"
    except OSError as error:
        return type(error).__name__

def write(path):
    try:
        os.write(os.open(path, os.O_WRONLY), b"1")
        return "written"
    except OSError:
        return "refused"

libc = ctypes.CDLL(None, use_errno=True)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
mounts = [line.split() for line in open("/proc/self/mountinfo")]
print(json.dumps({
    "pid": os.getpid(),
    "processes": [name for name in os.listdir("/proc") if name.isdecimal()],
    "namespaces": {name: os.readlink("/proc/self/ns/" + name) for name in os.listdir("/proc/self/ns")},
    "interfaces": [name for _, name in socket.if_nameindex()],
    "connections": [connect(address) for address in ("127.0.0.1", "169.254.169.254", "HOST")],
    "capabilities": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "seccomp": status["Seccomp"].strip(),
    "refused": {
        "mount": attempt(lambda: libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
        "user namespace": attempt(lambda: libc.unshare(0x10000000)),
        "mount namespace": attempt(lambda: libc.unshare(0x00020000)),
        "bpf": attempt(lambda: libc.syscall(321, 0, 0, 0)),
        "ptrace": attempt(lambda: libc.syscall(101, 16, 1, 0, 0)),
        "io_uring": attempt(lambda: libc.syscall(425, 8, 0)),
        "open_by_handle_at": attempt(lambda: libc.syscall(304, 0, 0, 0)),
        "clone": attempt(lambda: libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)),
        "raw socket": attempt(lambda: libc.socket(2, 3, 255)),
        "vsock": attempt(lambda: libc.socket(40, 1, 0)),
        "device": attempt(lambda: libc.mknod(b"/tmp/disk", 0o60666, 0xfe00)),
        "chroot": attempt(lambda: libc.chroot(b"/tmp")),
        "host name": attempt(lambda: libc.sethostname(b"x", 1)),
    },
    "clone3": errno.errorcode[(libc.syscall(435, 0, 0), ctypes.get_errno())[1]],
    "kernel": [write(path) for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern",
                                        "/sys/kernel/mm/ksm/run", "/sys/fs/cgroup/memory.max",
                                        "/sys/fs/cgroup/memory/memory.limit_in_bytes")],
    "keys": open("/proc/keys").read(),
    "host_paths": [mount[4] for mount in mounts if "TEMPORARY" in mount[3] + mount[-1]],
    "shm": os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize,
    "core": resource.getrlimit(resource.RLIMIT_CORE),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    "name": socket.gethostname(),
    "own_name": socket.gethostbyname(socket.gethostname()),
    "environment": sorted(os.environ),
    "score": open("/proc/self/oom_score_adj").read().strip(),
}))
"""


async def test_its_walls_are_those_of_the_oci_driver(
    driver: DockerDriver, spec: SandboxSpec, engine: PrivateEngine, tmp_path: Path
) -> None:
    assert driver.isolation == Isolation(filesystem=True, processes=True, network=True, resource_limits=True)
    with socket.create_server(("0.0.0.0", 0)) as listening:
        program = WALLS.replace("PORT", str(listening.getsockname()[1])).replace("TEMPORARY", tmp_path.name)
        found: dict[str, Any] = json.loads(await inside(driver, spec, program.replace("HOST", _own_address())))
    assert (found["pid"], found["processes"]) == (1, ["1"])
    for name in ("pid", "mnt", "ipc", "uts", "net", "cgroup"):
        outside = {os.readlink(f"/proc/{pid}/ns/{name}") for pid in ("self", engine.pid)}  # noqa: PTH115
        assert found["namespaces"][name] not in outside
    assert found["interfaces"] == ["lo"]
    assert "reached" not in found["connections"]
    allowed = "00000000000004fb"
    assert found["capabilities"] == ["0000000000000000", allowed, allowed, allowed, "0000000000000000"]
    assert (found["no_new_privileges"], found["seccomp"]) == ("1", "2")
    assert set(found["refused"].values()) == {"EPERM"}, found["refused"]
    assert found["clone3"] == "ENOSYS"
    assert found["kernel"] == ["refused"] * 5
    assert found["keys"] == ""
    assert sorted(found["host_paths"]) == ["/files", "/home/session"]
    assert (found["shm"], found["core"]) == (64 * MIB, [0, 0])
    assert found["files"][0] == found["files"][1] <= 65536
    assert (found["name"], found["own_name"], found["score"]) == ("agent", "127.0.0.1", "500")
    assert found["environment"] == ["HOME", "HOSTNAME", "PATH"]


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "192.0.2.1"
        address: str = probe.getsockname()[0]
        return address


async def test_writing_to_the_root_changes_no_layer_and_is_gone_with_the_sandbox(
    driver: DockerDriver, spec: SandboxSpec, base_root: Path
) -> None:
    before = (base_root / "etc/passwd").read_bytes()
    program = "import os; open('/usr/written', 'w').write('x'); os.remove('/etc/passwd'); print('done')"
    assert await inside(driver, spec, program) == "done"
    assert (base_root / "etc/passwd").read_bytes() == before
    program = "import os; print(os.path.exists('/usr/written'), os.path.exists('/etc/passwd'))"
    assert await inside(driver, spec, program) == "False True"


async def test_the_image_s_user_is_honoured(driver: DockerDriver, spec: SandboxSpec) -> None:
    program = "import os; print(os.getuid(), os.getgid()); open(os.environ['HOME'] + '/mine', 'w'); print('written')"
    assert await inside(driver, replace(spec, user="agent"), program) == "1000 1000\nwritten"
    program = "import os; print(os.getuid(), os.getgid())"
    assert await inside(driver, replace(spec, user="1234:5678"), program) == "1234 5678"
    with pytest.raises(SandboxError, match="'nobody-like-this'"):
        await driver.start(replace(spec, user="nobody-like-this"), lambda *_: None)


async def test_memory_beyond_the_limit_kills_it_and_it_is_told(driver: DockerDriver, spec: SandboxSpec) -> None:
    program = "held = bytearray(512 * 1024 * 1024)\nfor i in range(0, len(held), 4096): held[i] = 1\nprint('held')"
    printed, ended = await run(driver, replace(spec, arguments=("python3", "-c", program)))
    assert (printed, ended) == (b"", Exit(-9, out_of_memory=True))


async def test_processes_and_processor_time_are_limited(driver: DockerDriver, spec: SandboxSpec) -> None:
    program = """
import os, time
began = time.monotonic()
while time.process_time() < 0.3:
    pass
print(time.process_time() / (time.monotonic() - began) < 0.8)
children = 0
try:
    while children < 5000:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        children += 1
except BlockingIOError:
    pass
print(children < 1024, flush=True)
os._exit(0)
"""
    assert await inside(driver, replace(spec, memory=512 * MIB), program) == "True\nTrue"


async def test_more_processors_than_the_host_has_may_be_asked_for(driver: DockerDriver, spec: SandboxSpec) -> None:
    assert await inside(driver, replace(spec, cpu=4096.0), "print('runs')") == "runs"


async def test_a_long_output_comes_whole_and_in_order(driver: DockerDriver, spec: SandboxSpec) -> None:
    printed, ended = await run(driver, replace(spec, arguments=("python3", "-c", "for i in range(500000): print(i)")))
    assert ended == Exit(0)
    assert printed == b"".join(b"%d\n" % number for number in range(500000))


async def test_one_that_ends_at_once_is_seen_to_its_end(
    driver: DockerDriver, spec: SandboxSpec, tmp_path: Path
) -> None:
    spec = replace(spec, arguments=("busybox", "echo", "said"))

    async def one(number: int) -> tuple[bytes, Exit]:
        home = tmp_path / str(number)
        return await run(driver, replace(spec, name=f"short-{number}", home=home, files=home))

    assert await asyncio.gather(*map(one, range(6))) == [(b"said\n", Exit(0))] * 6


async def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing(driver: DockerDriver, spec: SandboxSpec) -> None:
    await run(driver, replace(spec, arguments=("busybox", "true")))
    for number in range(8):
        starting = asyncio.create_task(driver.start(replace(spec, name=f"cut-{number}"), lambda *_: None))
        await asyncio.wait({starting}, timeout=0.03 * number)
        if not starting.cancel():
            await driver.stop(f"cut-{number}", 0)
        await asyncio.gather(starting, return_exceptions=True)
        assert await driver.names() == frozenset()


async def test_freezing_and_thawing_keep_their_order(driver: DockerDriver, spec: SandboxSpec) -> None:
    ticks: list[bytes] = []
    program = "import time\nwhile True:\n  print('tick', flush=True)\n  time.sleep(0.01)"
    await driver.start(replace(spec, arguments=("python3", "-c", program)), lambda _, data: ticks.append(data))
    for _ in range(3):
        driver.thaw(spec.name)
        frozen = asyncio.create_task(driver.freeze(spec.name))
        await frozen
        driver.thaw(spec.name)
        await driver.freeze(spec.name)
        before = -1
        # What it printed before may still be on its way.
        async with asyncio.timeout(20):
            while before != len(ticks):
                before = len(ticks)
                await asyncio.sleep(0.2)
        driver.thaw(spec.name)
        async with asyncio.timeout(20):
            while len(ticks) == before:
                await asyncio.sleep(0.005)


async def test_what_would_be_given_later_is_refused(driver: DockerDriver, spec: SandboxSpec, tmp_path: Path) -> None:
    assert not driver.can_attach
    for late in (replace(spec, channel=True), replace(spec, home=None), replace(spec, files=None)):
        with pytest.raises(SandboxError, match="that runs already"):
            await driver.start(late, lambda *_: None)
    with pytest.raises(SandboxError, match="that runs already"):
        await driver.attach(spec.name, tmp_path / "home", tmp_path / "files")


async def test_an_image_is_made_once_and_kept_only_while_its_layers_are_there(
    driver: DockerDriver, spec: SandboxSpec, engine: PrivateEngine, tmp_path: Path
) -> None:
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "note").write_text("from the layer")
    layered = replace(spec, layers=(*spec.layers, extra), arguments=("busybox", "cat", "/note"))
    for _ in range(2):
        assert (await run(driver, layered))[0] == b"from the layer"
    (only,) = engine.get("/images/json", all="1")
    (extra / "note").unlink()
    extra.rmdir()
    await run(driver, replace(spec, arguments=("busybox", "true")))
    (other,) = engine.get("/images/json", all="1")
    assert other["Id"] != only["Id"]


async def test_a_layer_that_cannot_be_read_is_told(driver: DockerDriver, spec: SandboxSpec, tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="a layer of the image could not be read"):
        await driver.start(replace(spec, layers=(tmp_path / "missing",)), lambda *_: None)
    assert await driver.names() == frozenset()


async def test_what_a_dead_server_left_is_found_and_removed_whatever_its_state(
    driver: DockerDriver, spec: SandboxSpec, engine: PrivateEngine
) -> None:
    dead = DockerDriver(f"docker{os.getpid()}", engine.socket)
    await dead.open()
    brief = replace(spec, name="ended", arguments=("busybox", "true"))
    specs = (replace(spec, name="running"), replace(spec, name="frozen"), brief)
    sandboxes = [await dead.start(each, lambda *_: None) for each in specs]
    await dead.freeze("frozen")
    await asyncio.wait_for(sandboxes[2].exited, 20)
    assert await driver.names() == {"running", "frozen", "ended"}
    await asyncio.gather(*(driver.stop(name, 0) for name in await driver.names()))
    assert await driver.names() == frozenset()
    assert [await asyncio.wait_for(sandbox.exited, 20) for sandbox in sandboxes] == [Exit(-9), Exit(-9), Exit(0)]
    await dead.close()


async def test_other_containers_of_the_engine_are_left_alone(
    driver: DockerDriver, spec: SandboxSpec, engine: PrivateEngine
) -> None:
    neighbour = DockerDriver(f"other{os.getpid()}", engine.socket)
    await neighbour.open()
    await neighbour.start(spec, lambda *_: None)
    assert await driver.names() == frozenset()
    await driver.stop(spec.name, 0)
    assert await neighbour.names() == {spec.name}
    await neighbour.stop(spec.name, 0)
    await neighbour.close()


async def test_an_engine_that_is_not_there_is_told(tmp_path: Path) -> None:
    driver = DockerDriver("absent", tmp_path / "docker.sock")
    with pytest.raises(SandboxError, match=f"the Docker engine at {tmp_path}/docker.sock cannot be reached"):
        await driver.open()


async def test_an_engine_that_vanishes_ends_its_sandboxes_and_is_told(
    spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "RECONNECT_DEADLINE", 0.3)
    with _own_engine() as engine:
        driver = DockerDriver("vanish", engine.socket)
        await driver.open()
        sandbox = await driver.start(spec, lambda *_: None)
        os.kill(engine.pid, 9)
        assert await asyncio.wait_for(sandbox.exited, 20) == Exit(-9)
        with pytest.raises(SandboxError, match="cannot be reached"):
            await driver.stop(spec.name, 0)
        with pytest.raises(SandboxError, match="cannot be reached"):
            await driver.start(replace(spec, name="next"), lambda *_: None)
        await driver.close()


@contextlib.contextmanager
def _own_engine() -> Iterator[PrivateEngine]:
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(serve_engine())
        except EngineUnavailable as error:
            pytest.skip(str(error))
        yield running


def test_an_engine_elsewhere_is_reached_by_address_and_neighbours_stay_apart(
    engine: PrivateEngine, base_root: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.system.docker_elsewhere", str(engine.socket), str(engine.pid)]
    done = subprocess.run(
        [*command, str(base_root), str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "declares": {"filesystem": True, "processes": True, "network": False, "resource_limits": True},
        "answers": ["pong"] * 3,
        "reaches itself": True,
        "reaches its neighbour": False,
        "reaches another network": False,
    }
    assert engine.contents() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("seed", range(12))
def test_layers_are_merged_as_overlayfs_does(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - nothing is kept secret by it
    layers = [_random_layer(chance, tmp_path / str(number)) for number in range(4)]
    (tmp_path / "upper").mkdir()
    (tmp_path / "work").mkdir()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    mount_overlay(tuple(layers), tmp_path / "upper", tmp_path / "work", mounted)
    try:
        # The kernel lists a whiteout with nothing below it, and then has no such file.
        listed = [path for path in mounted.rglob("*") if os.path.lexists(path)]
        expected = {str(path.relative_to(mounted)): _seen(path) for path in listed}
    finally:
        linux.unmount(str(mounted))
    found = {name.removeprefix("./"): _seen(Path(path)) for name, path in merged(layers) if name != "."}
    assert found == expected


def _random_layer(chance: random.Random, layer: Path) -> Path:
    """A few files, whiteouts, links and opaque directories with names that layers have in common."""
    layer.mkdir()
    for _ in range(12):
        *above, name = [chance.choice("abc") for _ in range(chance.randint(1, 3))]
        parent = layer
        for part in above:
            parent = parent / part
            if not os.path.lexists(parent):
                parent.mkdir(mode=chance.choice([0o700, 0o755]))
                if chance.random() < 0.3:
                    os.setxattr(parent, OPAQUE, b"y")
            if parent.is_symlink() or not parent.is_dir():
                break
        else:
            path = parent / name
            if not os.path.lexists(path):
                kind = chance.choice(["file", "whiteout", "link"])
                if kind == "file":
                    path.write_text(str(chance.random()))
                elif kind == "link":
                    path.symlink_to("elsewhere")
                else:
                    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    return layer


def _seen(path: Path) -> tuple[int, str]:
    status = path.lstat()
    return status.st_mode, path.read_text() if stat.S_ISREG(status.st_mode) else ""
