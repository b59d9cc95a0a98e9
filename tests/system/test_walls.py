"""What the `oci` driver declares to keep apart is apart: each program tries from inside and prints what it reached."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cupola.sandbox.base import MIB, SandboxSpec
from cupola.sandbox.oci.driver import OciDriver
from cupola.sandbox.oci.seccomp import profile

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the oci driver needs root")

ENGINE_PROFILE = Path("/usr/share/containers/seccomp.json")
NEWER_THAN_THE_PROFILE = frozenset({"fchmodat2", "futex_waitv"})
"""Newer forms of calls that it allows."""


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[OciDriver]:
    made = OciDriver(f"walls{os.getpid()}", tmp_path / "run", tmp_path / "data")
    await made.open()
    yield made
    for name in await made.names():
        await made.stop(name, 0)
    await made.close()


@pytest.fixture
def spec(base_root: Path, tmp_path: Path) -> SandboxSpec:
    return SandboxSpec(
        name="inside",
        layers=(base_root,),
        arguments=(),
        environment=(("PATH", "/usr/bin:/bin"), ("HOME", "/home/session")),
        working_directory="/",
        user="",
        home=tmp_path / "session" / "home",
        files=tmp_path / "session" / "files",
        cpu=0.5,
        memory=128 * MIB,
    )


async def inside(driver: OciDriver, spec: SandboxSpec, program: str) -> tuple[str, int, bool]:
    """Run a Python program in a sandbox: what it printed, its exit code, and whether it died for lack of memory."""
    printed: list[bytes] = []
    spec = replace(spec, arguments=("python3", "-u", "-c", program))
    sandbox = await driver.start(spec, lambda stream, data: None if stream == "status" else printed.append(data))
    ended = await asyncio.wait_for(sandbox.exited, 60)
    await driver.stop(spec.name, 0)
    return b"".join(printed).decode().strip(), ended.code, ended.out_of_memory


async def test_one_that_ends_at_once_is_seen_to_its_end(driver: OciDriver, spec: SandboxSpec) -> None:
    for number in range(20):
        printed: list[bytes] = []
        short = replace(spec, name=f"short-{number}", arguments=("busybox", "echo", "said"))
        sandbox = await driver.start(short, lambda _, data, printed=printed: printed.append(data))  # type: ignore[misc]
        assert (await asyncio.wait_for(sandbox.exited, 20)).code == 0
        await driver.stop(short.name, 0)
        assert printed == [b"said\n"]


async def test_it_is_alone_in_its_process_table(driver: OciDriver, spec: SandboxSpec) -> None:
    program = "import os; print(os.getpid(), sorted(p for p in os.listdir('/proc') if p.isdecimal()))"
    assert (await inside(driver, spec, program))[0] == "1 ['1']"


async def test_it_reaches_no_network_but_its_own_loopback(driver: OciDriver, spec: SandboxSpec) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listening:
        port = listening.getsockname()[1]
        program = f"""
import socket
print(sorted(name for _, name in socket.if_nameindex()))
for address in ("127.0.0.1", "169.254.169.254", "{_own_address()}"):
    try:
        socket.create_connection((address, {port}), 2)
        print("reached", address)
    except OSError as error:
        print(type(error).__name__)
try:
    socket.getaddrinfo("example.com", 80)
    print("resolved")
except OSError as error:
    print("no names")
"""
        printed = (await inside(driver, spec, program))[0].splitlines()
    assert printed == ["['lo']", "ConnectionRefusedError", "OSError", "OSError", "no names"]


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "192.0.2.1"
        address: str = probe.getsockname()[0]
        return address


async def test_it_sees_no_files_of_the_host(driver: OciDriver, spec: SandboxSpec, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("host secret")
    program = f"""
import os
print(os.path.exists({str(secret)!r}), os.path.exists("/proc/1/root/../{secret}"))
mounts = [line.split()[4] for line in open("/proc/self/mountinfo")]
print(all(mount == "/" or mount.startswith(("/proc", "/sys", "/dev", "/etc/hosts", "/etc/resolv.conf",
                                              "/home/session", "/files"))
          for mount in mounts))
print([line for line in open("/proc/self/mountinfo") if {str(tmp_path)!r} in line and " /home/session " not in line
       and " /files " not in line and " /etc/hosts " not in line and " /etc/resolv.conf " not in line
       and " / / " not in line])
"""
    printed = (await inside(driver, spec, program))[0].splitlines()
    assert printed == ["False False", "True", "[]"]


async def test_writing_to_the_root_changes_no_layer(driver: OciDriver, spec: SandboxSpec, base_root: Path) -> None:
    program = "open('/usr/written', 'w').write('x'); import os; os.remove('/etc/passwd'); print('done')"
    before = (base_root / "etc/passwd").read_bytes()
    assert (await inside(driver, spec, program))[0] == "done"
    assert not (base_root / "usr/written").exists()
    assert (base_root / "etc/passwd").read_bytes() == before


@pytest.mark.parametrize(
    "attempt",
    [
        "libc.mount(b'none', b'/mnt', b'tmpfs', 0, None)",
        "libc.unshare(0x10000000)",
        "libc.unshare(0x00020000)",
        "libc.setns(3, 0)",
        "libc.syscall(321, 0, 0, 0)",  # bpf
        "libc.syscall(298, 0, 0, 0, 0, 0)",  # perf_event_open
        "libc.syscall(250, 0, 0, 0, 0, 0)",  # keyctl
        "libc.syscall(101, 16, 1, 0, 0)",  # ptrace attach
        "libc.syscall(425, 8, 0)",  # io_uring_setup
        "libc.syscall(323, 0)",  # userfaultfd
        "libc.syscall(304, 0, 0, 0)",  # open_by_handle_at
        "libc.syscall(246, 0, 0, 0, 0)",  # kexec_load
        "libc.syscall(175, 0, 0, 0)",  # init_module
        "libc.syscall(169, 0xfee1dead, 672274793, 0x4321fedc, 0)",  # reboot
        "libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",  # clone into a new user namespace
        "libc.socket(40, 1, 0)",  # vsock
        "libc.socket(2, 3, 255)",  # raw
        "libc.mknod(b'/tmp/disk', 0o60666, 0xfe00)",
        "libc.chroot(b'/tmp')",
        "libc.sethostname(b'x', 1)",
        "libc.settimeofday(b'\\0' * 16, None)",
    ],
)
async def test_a_privileged_call_is_refused(driver: OciDriver, spec: SandboxSpec, attempt: str) -> None:
    program = f"""
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
print({attempt}, errno.errorcode[ctypes.get_errno()])
"""
    assert (await inside(driver, spec, program))[0] == "-1 EPERM"


async def test_it_has_few_capabilities_and_can_gain_none(driver: OciDriver, spec: SandboxSpec) -> None:
    program = """
for line in open("/proc/self/status"):
    if line.startswith(("CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp:")):
        print(line.split()[0], line.split()[1])
"""
    # chown, dac_override, fowner, fsetid, kill, setgid, setuid, net_bind_service.
    assert (await inside(driver, spec, program))[0].splitlines() == [
        "CapEff: 00000000000004fb",
        "CapBnd: 00000000000004fb",
        "CapAmb: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
    ]


async def test_the_image_s_user_is_honoured(driver: OciDriver, spec: SandboxSpec) -> None:
    program = "import os; print(os.getuid(), os.getgid()); open(os.environ['HOME'] + '/mine', 'w'); print('written')"
    assert (await inside(driver, replace(spec, user="agent"), program))[0] == "1000 1000\nwritten"
    program = "import os; print(os.getuid(), os.getgid())"
    assert (await inside(driver, replace(spec, user="1234:5678"), program))[0] == "1234 5678"


@pytest.mark.parametrize("path", ["/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/sys/kernel/mm/ksm/run"])
async def test_kernel_settings_cannot_be_written(driver: OciDriver, spec: SandboxSpec, path: str) -> None:
    program = f"""
try:
    open({path!r}, "w").write("x")
    print("written")
except OSError as error:
    print("refused")
"""
    assert (await inside(driver, spec, program))[0] == "refused"


async def test_memory_beyond_the_limit_kills_it(driver: OciDriver, spec: SandboxSpec) -> None:
    program = "held = bytearray(512 * 1024 * 1024)\nfor i in range(0, len(held), 4096): held[i] = 1\nprint('held')"
    printed, code, out_of_memory = await inside(driver, spec, program)
    assert (printed, code, out_of_memory) == ("", -9, True)


async def test_processes_are_limited(driver: OciDriver, spec: SandboxSpec) -> None:
    program = """
import os, time
children = 0
try:
    while children < 5000:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        children += 1
except BlockingIOError:
    pass
print(children < 1024)
os._exit(0)
"""
    assert (await inside(driver, replace(spec, memory=512 * MIB), program))[0] == "True"


async def test_processor_time_is_limited(driver: OciDriver, spec: SandboxSpec) -> None:
    program = """
import time
began = time.monotonic()
while time.process_time() < 0.5:
    pass
print(time.process_time() / (time.monotonic() - began) < 0.8)
"""
    assert (await inside(driver, spec, program))[0] == "True"


async def test_a_sandbox_cannot_reach_another(driver: OciDriver, spec: SandboxSpec, tmp_path: Path) -> None:
    serve = "import http.server as h; h.HTTPServer(('0.0.0.0', 8088), h.SimpleHTTPRequestHandler).serve_forever()"
    other = replace(
        spec, name="other", arguments=("python3", "-c", serve), home=tmp_path / "o/home", files=tmp_path / "o/f"
    )
    await driver.start(other, lambda *_: None)
    program = """
import socket, os
try:
    socket.create_connection(("127.0.0.1", 8088), 1)
    print("reached")
except OSError:
    print("alone", os.listdir("/home/session"), os.listdir("/files"))
"""
    assert (await inside(driver, spec, program))[0] == "alone [] []"


async def test_a_runtime_that_a_dead_server_left_at_work_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()", "--root", str(tmp_path / "run" / "state")]
    stray = await asyncio.to_thread(subprocess.Popen, command)
    # The kernel shows the arguments a moment after the program was started.
    arguments = Path(f"/proc/{stray.pid}/cmdline")
    while not await asyncio.to_thread(arguments.read_bytes):
        await asyncio.sleep(0.001)
    made = OciDriver(f"stray{os.getpid()}", tmp_path / "run", tmp_path / "data")
    await made.open()
    assert stray.wait(1) == -9
    await made.close()


async def test_a_ctrl_c_that_meets_the_runtime_at_its_start_harms_no_sandbox(spec: SandboxSpec, tmp_path: Path) -> None:
    real = shutil.which("crun")
    if real is None:
        pytest.skip("crun is not installed")
    struck = tmp_path / "crun"
    struck.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/struck ] || {{ : > {tmp_path}/struck; kill -INT $$; }}\nexec {real} "$@"\n'
    )
    struck.chmod(0o755)
    made = OciDriver(f"struck{os.getpid()}", tmp_path / "run", tmp_path / "data", str(struck))
    await made.open()
    assert (await inside(made, spec, "print('fine')"))[0] == "fine"
    assert (tmp_path / "struck").exists()
    await made.close()


def test_no_system_call_is_allowed_that_container_engines_refuse() -> None:
    if not ENGINE_PROFILE.exists():
        pytest.skip("the container engines' own profile is not installed")
    engine = json.loads(ENGINE_PROFILE.read_text())
    allowed = {
        name
        for rule in engine["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("includes", {}).get("caps")
        for name in rule["names"]
    }
    ours = {name for rule in profile()["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert ours - allowed <= NEWER_THAN_THE_PROFILE
