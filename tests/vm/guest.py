"""The program that the virtual machine runs: every check of the `oci` driver, one line of output each.

What a server does runs in processes of its own, as crashes are part of the checks: `live` holds the driver
through all checks that need one, `victim` is killed with a sandbox running, `sweep` and `recover` clean up.
"""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cupola.sandbox.oci.cgroup import find_hierarchies
from cupola.sandbox.oci.driver import OciDriver
from cupola.sandbox.oci.installations import LOCK_NAME, enter_private_mount_namespace, sweep_dead_installations
from tests.vm.checks import (
    CHECKS,
    DATA,
    GROUP,
    INSTALLATION,
    LAYERS,
    PATIENCE,
    PROGRAMS,
    WORK,
    same,
    specify,
)  # fmt: skip

RUN_ROOT = WORK / "run"
RUN = RUN_ROOT / INSTALLATION
READY = "ready\n"


def check_everything(version: str) -> None:
    for folder in PROGRAMS:
        shutil.copytree(folder, LAYERS[-1], dirs_exist_ok=True)
    with check("hierarchies"):
        _check_hierarchies(version)
    with check("live"):
        subprocess.run(_program("live"), check=True)
    with check("crash_then_restart"):
        _crash()
        subprocess.run(_program("recover"), check=True, timeout=PATIENCE)
        _check_nothing_left()
    with check("crash_then_sweep"):
        _crash()
        subprocess.run(_program("sweep"), check=True, timeout=PATIENCE)
        same((_groups(), _inner_processes(), RUN.exists()), ([], [], False))
        # Writable layers are not in the run directory: the next start of the same installation removes them.
        subprocess.run(_program("recover"), check=True, timeout=PATIENCE)
        _check_nothing_left()
    print("END", flush=True)


@contextmanager
def check(name: str) -> Iterator[None]:
    """Report what happens inside as one line."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        print(f"FAIL {name} {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
    else:
        print(f"PASS {name}", flush=True)


async def live() -> None:
    """Every check of a living driver. Each leaves nothing, closing the driver not even the parent group."""
    driver = _make_driver()
    await driver.open()
    for run in CHECKS:
        with check(run.__name__):
            await asyncio.wait_for(run(driver), 2 * PATIENCE)
            same(await driver.names(), frozenset())
            await asyncio.to_thread(_check_nothing_left, but=_parents())
    with check("close"):
        await driver.close()
        same(_groups(), [])


async def victim() -> None:
    """A server with a sandbox, for ever."""
    driver = _make_driver()
    lock = (RUN / LOCK_NAME).open("a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    await driver.open()
    await driver.start(specify("serve"), lambda _stream, _data: None)
    print(READY, end="", flush=True)
    await asyncio.get_running_loop().create_future()


async def recover() -> None:
    """What a server does when it is started again."""
    driver = _make_driver()
    await driver.open()
    same(await driver.names(), {specify("serve").name})
    await driver.stop(specify("serve").name, 0)
    same(await driver.names(), frozenset())
    await driver.close()


async def sweep() -> None:
    """What the server of another installation does when it is started."""
    sweep_dead_installations(RUN_ROOT)


def _make_driver() -> OciDriver:
    RUN.mkdir(parents=True, exist_ok=True)
    return OciDriver(INSTALLATION, RUN, DATA)


def _program(role: str) -> list[str]:
    return [sys.executable, "-u", "-m", "tests.vm.guest", role]


def _crash() -> None:
    """Leave a sandbox whose server has been killed."""
    with subprocess.Popen(_program("victim"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        same(process.stdout.readline(), READY)
        process.kill()
    assert _inner_processes(), "the sandbox has not outlived its server, so there is nothing to clean up"


def _check_hierarchies(version: str) -> None:
    found = find_hierarchies()
    same(found.hybrid, None)
    if version == "v2":
        same((found.unified, found.controllers), (Path("/sys/fs/cgroup"), {}))
    else:
        same(found.unified, None)
        same({"cpu", "memory", "pids", "devices"} - set(found.controllers), set())


def _check_nothing_left(but: frozenset[str] = frozenset()) -> None:
    """Waits a moment, as a killed process is there until its parent has taken its status."""
    end = time.monotonic() + 5
    while (found := set(_leftovers()) - but) and time.monotonic() < end:
        time.sleep(0.01)
    same(found, set())


def _leftovers() -> list[str]:
    """What is there of sandboxes: groups, mounts, directories and processes."""
    mounts = [
        line
        for process in ("self", "1")
        for line in Path(f"/proc/{process}/mountinfo").read_text().splitlines()
        if " - overlay " in line or str(WORK) in line
    ]
    parents = (RUN / "bundles", RUN / "state", DATA)
    directories = [str(entry) for parent in parents for entry in parent.glob("[!.]*")]
    return [*_groups(), *mounts, *directories, *_inner_processes()]


def _groups() -> list[str]:
    return [str(group) for root in find_hierarchies().roots for group in (root / GROUP).glob("**")]


def _parents() -> frozenset[str]:
    return frozenset(str(root / GROUP) for root in find_hierarchies().roots)


def _inner_processes() -> list[str]:
    """The processes that are in a sandbox: in another process namespace than we are."""
    ours = Path("/proc/self/ns/pid").readlink()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/pid").readlink() != ours:
                found.append(f"process {entry.name}")
        except FileNotFoundError:
            continue  # it has ended meanwhile
    return found


if __name__ == "__main__":
    role = sys.argv[1]
    if role in ("v1", "v2"):
        check_everything(role)
    else:
        enter_private_mount_namespace()
        asyncio.run({"live": live, "victim": victim, "sweep": sweep, "recover": recover}[role]())
