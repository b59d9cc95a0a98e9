"""Run the `oci` driver in virtual machines: with control groups of version 1 only, and of version 2 only.

    .venv/bin/python tests/vm/run.py [--install] [v1|v2]

Needs no rights of its own: QEMU emulates the processor where KVM is not available. The kernel is Debian's.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from cupola.images.steps import BuildError, once, run  # noqa: E402
from tests.vm.initramfs import build_initramfs  # noqa: E402

CACHE = PROJECT / ".cache/vm"
QEMU = "qemu-system-x86_64"
KERNEL = "linux-image-cloud-amd64"
PARAMETERS = {"v1": "", "v2": "cgroup_no_v1=all"}
MODULES = ("overlay", "loop", "quota_tree", "quota_v2")
DISK_SIZE = 64 * 1024 * 1024
DEADLINE = 180.0
"""Seconds one machine may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the oci driver in virtual machines.")
    parser.add_argument("versions", nargs="*", metavar="v1|v2", help="versions of control groups, else both")
    parser.add_argument("--install", action="store_true", help="install QEMU by apt-get if it is missing")
    arguments = parser.parse_args()
    if unknown := set(arguments.versions) - set(PARAMETERS):
        parser.error(f"not a version of control groups: {', '.join(sorted(unknown))}")
    start = time.monotonic()
    try:
        if arguments.install and shutil.which(QEMU) is None:
            install_qemu()
        if shutil.which(QEMU) is None:
            raise BuildError(f"no {QEMU}: run this with --install (on Debian: apt install qemu-system-x86)")
        kernel, modules = fetch_kernel()
        initramfs = CACHE / "initramfs.cpio.gz"
        build_initramfs(PROJECT, modules, make_disk(), initramfs)
    except BuildError as error:
        print(f"tests/vm: {error}", file=sys.stderr)
        return 1
    print(f"built the machine in {time.monotonic() - start:.1f} s")
    passed = [run_checks(version, kernel, initramfs) for version in arguments.versions or PARAMETERS]
    return 0 if all(passed) else 1


def install_qemu() -> None:
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    run([*as_root, "apt-get", "update", "-qq"])
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "qemu-system-x86"]
    run([*as_root, "env", "DEBIAN_FRONTEND=noninteractive", *install])


def make_disk() -> Path:
    """The image of a file system with project quotas."""
    image = CACHE / "disk.img"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    features = ["-O", "quota,project,^has_journal", "-E", "quotatype=prjquota"]
    run(["mkfs.ext4", "-q", "-F", *features, image])
    return image


def fetch_kernel() -> tuple[Path, list[Path]]:
    """The kernel and the modules needed, of the newest package that apt knows; it is not installed."""
    try:
        depends = run(["apt-cache", "depends", KERNEL]).decode().split()
        package = next(word for word in depends if word.startswith("linux-image-") and word != KERNEL)
        unpacked = once(CACHE / package, lambda folder: _unpack(package, folder))
    except (BuildError, StopIteration) as error:
        raise BuildError(f"no {KERNEL} from apt, maybe before an apt-get update. {error}") from error
    return next(unpacked.glob("boot/vmlinuz-*")), [next(unpacked.rglob(f"{name}.ko*")) for name in MODULES]


def _unpack(package: str, folder: Path) -> None:
    run(["apt-get", "download", package], folder=folder)
    (archive,) = folder.glob("*.deb")
    run(["dpkg-deb", "-x", archive, folder])
    archive.unlink()


def run_checks(version: str, kernel: Path, initramfs: Path) -> bool:
    """Print each check as it ends; whether all there are have passed."""
    print(f"control groups {version}:", flush=True)
    start = last = time.monotonic()
    log = CACHE / f"console-{version}.log"
    passed: list[bool] = []
    ended = False
    with log.open("w") as console:
        for line in console_of(_machine(version, kernel, initramfs)):
            console.write(line + "\n")
            if line.startswith(("PASS ", "FAIL ")):
                now = time.monotonic()
                print(f"  {line}  ({now - last:.1f} s)", flush=True)
                passed.append(line.startswith("PASS "))
                last = now
            ended = ended or line == "END"
    print(f"  {sum(passed)} of {len(passed)} passed, {time.monotonic() - start:.1f} s")
    if not ended:
        print(f"  FAIL the machine did not come to the end of the checks within {DEADLINE:.0f} s")
    if not ended or not all(passed):
        print(f"  see {log.relative_to(PROJECT)}")
    return ended and all(passed)


def _machine(version: str, kernel: Path, initramfs: Path) -> list[str]:
    parameters = f"console=ttyS0 loglevel=1 panic=-1 mitigations=off cgroups={version} {PARAMETERS[version]}"
    return [
        QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
        "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "1G",
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", parameters,
    ]  # fmt: skip


def console_of(command: list[str]) -> Iterator[str]:
    """The lines of a machine's console until it is off; it is ended at the deadline."""
    end = time.monotonic() + DEADLINE
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with (
        subprocess.Popen(command, stdin=null, stdout=pipe, stderr=subprocess.STDOUT) as machine,
        selectors.DefaultSelector() as selector,
    ):
        assert machine.stdout is not None
        selector.register(machine.stdout, selectors.EVENT_READ)
        rest = b""
        try:
            while selector.select(end - time.monotonic()):
                data = os.read(machine.stdout.fileno(), 4096)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                yield from (line.decode(errors="replace").strip() for line in lines)
        finally:
            machine.kill()


if __name__ == "__main__":
    sys.exit(main())
