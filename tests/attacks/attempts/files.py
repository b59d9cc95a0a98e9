"""Attempts to get at files of the host, of other sessions and of the image's layers, and at devices."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.attacks.attempts.registry import (
    UNPRIVILEGED,
    Impossible,
    Wall,
    add,
    attempt,
    call,
    host,
    needs,
    passes,
    refuse,
    syscall,
)

HOME = Path("/home/session")
LAYER = Path("/layer")
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 2, 32, 4096, 8192
AT_FDCWD = -100


def secret_by(path: str) -> None:
    """Read the host's secret file by some path."""
    if Path(path).read_text() != "host secret":
        refuse("something else is there")


def _by_link() -> None:
    link = HOME / f"link-{os.getpid()}"
    link.symlink_to(host("secret"))
    secret_by(str(link))


def _by_relative_link() -> None:
    link = HOME / f"relative-{os.getpid()}"
    link.symlink_to("../" * 40 + host("secret").lstrip("/"))
    secret_by(str(link))


def _by_linked_directory() -> None:
    link = HOME / f"directory-{os.getpid()}"
    link.symlink_to("/proc/self/root")
    secret_by(f"{link}{host('secret')}")


def _by_chdir() -> None:
    for _ in range(100):
        os.chdir("..")
    secret_by(host("secret").lstrip("/"))


def _by_descriptor() -> None:
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(100):
        root = os.open("..", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    os.read(os.open(host("secret").lstrip("/"), os.O_RDONLY, dir_fd=root), 100)


def _by_moved_directory() -> None:
    # What is above a working directory must not come into sight when that is moved away.
    inner = HOME / f"moved-{os.getpid()}" / "a" / "b" / "c"
    inner.mkdir(parents=True)
    os.chdir(inner)
    inner.rename(HOME / f"elsewhere-{os.getpid()}")
    _by_chdir()


def _by_search() -> None:
    wanted = Path(host("secret")).name
    for directory, names, files in os.walk("/", onerror=lambda _: None):
        names[:] = [name for name in names if os.path.join(directory, name) not in ("/proc", "/sys", "/usr")]
        if wanted in files:
            return
    raise FileNotFoundError(2, "no file of that name")


for _name, _tries, _run in (
    ("read_absolute", "the secret's own path", lambda: secret_by(host("secret"))),
    ("read_dot_dot", "`..` beyond the root", lambda: secret_by("/.." * 40 + host("secret"))),
    ("read_proc_1_root", "the root of process 1", lambda: secret_by("/proc/1/root" + host("secret"))),
    ("read_proc_self_root", "its own root, by /proc", lambda: secret_by("/proc/self/root/.." + host("secret"))),
    ("read_proc_thread_root", "a thread's root", lambda: secret_by("/proc/thread-self/root" + host("secret"))),
    ("read_proc_cwd", "`..` from /proc/self/cwd", lambda: secret_by("/proc/self/cwd" + "/.." * 40 + host("secret"))),
    ("read_by_link", "a symbolic link in $HOME", _by_link),
    ("read_by_relative_link", "a symbolic link with many `..`", _by_relative_link),
    ("read_by_linked_directory", "a symbolic link to the root of a process", _by_linked_directory),
    ("read_by_chdir", 'a hundred times `chdir("..")`', _by_chdir),
    ("read_by_descriptor", "`..` from an open directory", _by_descriptor),
    ("read_by_moved_directory", "a working directory that is moved away", _by_moved_directory),
    ("read_by_search", "a search through all that is mounted", _by_search),
):
    add(_name, f"read a file of the host by {_tries}", _run, Wall.HOST_PATHS)


@attempt(Wall.HOST_PATHS)
def write_to_the_host() -> None:
    """Write a file into a directory of the host."""
    Path(host("secret")).with_name(f"written-{os.getpid()}").write_text("x")


@attempt(Wall.OTHER_SESSIONS)
def read_another_session() -> None:
    """Read a file of another session, whose folder lies beside its own."""
    if Path(host("other")).read_text() != "another's":
        refuse("something else is there")


@attempt(Wall.OTHER_SESSIONS)
def list_sessions() -> None:
    """List the folder that holds all sessions."""
    os.listdir(Path(host("other")).parents[2])


@attempt(Wall.OTHER_SESSIONS)
def write_to_another_session() -> None:
    """Put a file into another session's $HOME."""
    Path(host("other")).with_name(f"planted-{os.getpid()}").write_text("x")


# Mounts and roots. What would change something changes it in a mount namespace of the sandbox's own.


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())


def _directory() -> str:
    path = HOME / f"mount-{os.getpid()}"
    path.mkdir()
    return str(path)


def _overlay() -> None:
    base = f"/dev/shm/overlay-{os.getpid()}"
    for name in ("lower", "upper", "work"):
        os.makedirs(f"{base}/{name}")
    mount(
        "overlay",
        _directory(),
        "overlay",
        0,
        ",".join(f"{name}dir={base}/{name}" for name in ("lower", "upper", "work")),
    )


def _pivot() -> None:
    passes(lambda: syscall(155, b"/tmp", b"/tmp"), errno.EINVAL, errno.EBUSY)


def _move_mount() -> None:
    tree = syscall(428, AT_FDCWD, b"/files", 1)
    syscall(429, tree, b"", AT_FDCWD, _directory().encode(), 4)


def _open_tree() -> None:
    syscall(428, AT_FDCWD, b"/files", 1)


def _fsopen() -> None:
    syscall(430, b"tmpfs", 0)


def _mount_setattr() -> None:
    clear = (ctypes.c_uint64 * 4)(0, MS_NOSUID, 0, 0)
    syscall(442, AT_FDCWD, b"/files", 0, ctypes.byref(clear), 32)


def _cgroup() -> None:
    target = _directory()
    mount("cgroup2", target, "cgroup2")
    os.open(f"{target}/cgroup.procs", os.O_WRONLY)


for _name, _tries, _run in (
    ("mount_tmpfs", "a file system in memory", lambda: mount("none", _directory(), "tmpfs")),
    ("mount_proc", "a new /proc, without masks", lambda: mount("proc", _directory(), "proc")),
    ("mount_sysfs", "a new, writable /sys", lambda: mount("sysfs", _directory(), "sysfs")),
    ("mount_devpts", "the terminals", lambda: mount("devpts", _directory(), "devpts")),
    ("mount_devtmpfs", "all devices of the host", lambda: mount("devtmpfs", _directory(), "devtmpfs")),
    ("mount_cgroup", "the control groups, to leave its own", _cgroup),
    ("mount_overlay", "an overlay of its own", _overlay),
    ("mount_bind", "a second view of $HOME", lambda: mount(str(HOME), _directory(), "", MS_BIND)),
    ("mount_over_masked", "a second view of /proc", lambda: mount("/proc", _directory(), "", MS_BIND)),
    ("remount_sys", "/sys as writable", lambda: mount("", "/sys", "", MS_REMOUNT | MS_BIND)),
    ("remount_proc_sys", "/proc/sys as writable", lambda: mount("", "/proc/sys", "", MS_REMOUNT | MS_BIND)),
    ("remount_suid", "$HOME with set-user-id programs", lambda: mount("", str(HOME), "", MS_REMOUNT | MS_BIND)),
    ("unmount_mask", "nothing over /proc/sys", lambda: call("umount2", b"/proc/sys", 2)),
    ("pivot_root", "another root by pivot_root", _pivot),
    ("chroot", "another root by chroot", lambda: os.chroot("/tmp")),
    ("open_tree", "a copy of a mount", _open_tree),
    ("move_mount", "a copy of a mount elsewhere", _move_mount),
    ("fsopen", "a file system by the newer calls", _fsopen),
    ("mount_setattr", "a mount without nosuid", _mount_setattr),
):
    add(_name, f"mount {_tries}", _run, Wall.SECCOMP, Wall.CAPABILITIES)


class _Handle(ctypes.Structure):
    _fields_ = [("size", ctypes.c_uint), ("kind", ctypes.c_int), ("handle", ctypes.c_ubyte * 128)]


@attempt(Wall.SECCOMP, Wall.CAPABILITIES)
def open_by_handle() -> None:
    """Open a file by a handle, by which any file of the disk can be opened."""
    (HOME / "handled").touch()
    handle, identifier = _Handle(128, 0), ctypes.c_int()
    syscall(303, AT_FDCWD, str(HOME / "handled").encode(), ctypes.byref(handle), ctypes.byref(identifier), 0)
    syscall(304, os.open(HOME, os.O_RDONLY), ctypes.byref(handle), os.O_RDONLY)


# Devices.


def node(directory: str, kind: int, device: int) -> str:
    path = f"{directory}/node-{os.getpid()}"
    os.mknod(path, kind | 0o666, device)
    return path


def _read_device(directory: str, kind: int, device: Callable[[], int]) -> None:
    passes(lambda: os.open(node(directory, kind, device()), os.O_RDONLY | os.O_NONBLOCK), errno.ENXIO, errno.ENODEV)


def loop() -> int:
    return os.makedev(7, 0)


def messages() -> int:
    return os.makedev(1, 11)


@attempt(Wall.CAPABILITIES)
def make_disk_node() -> None:
    """Make a device node of the host's disk."""
    node("/root", stat.S_IFBLK, loop())


@attempt(Wall.CAPABILITIES)
def make_memory_node() -> None:
    """Make a device node of the machine's memory."""
    node("/dev", stat.S_IFCHR, os.makedev(1, 1))


for _place, _walls in (("/dev", ()), ("/root", (Wall.NODEV,)), ("/files", (Wall.NODEV,))):
    for _what, _kind, _device in (
        ("disk", stat.S_IFBLK, loop),
        ("messages", stat.S_IFCHR, messages),
    ):
        add(
            f"open_{_what}_node_in{_place.replace('/', '_')}",
            f"open the host's {_what} by a device node in {_place}",
            partial(_read_device, _place, _kind, _device),
            *(Wall.CAPABILITIES, Wall.DEVICES, *_walls),
        )


# Programs that give rights.


def _effective_user(program: str) -> None:
    printed = subprocess.run(
        [program, "-I", "-S", "-c", "import os; print(os.geteuid())"], capture_output=True, check=False
    ).stdout
    if printed.strip() != b"0":
        refuse(f"it ran as {printed!r}")


@attempt(Wall.NO_NEW_PRIVILEGES, Wall.NOSUID, user=UNPRIVILEGED)
def run_set_user_id_program_of_the_image() -> None:
    """As another user, become root by a set-user-id program of the image."""
    _effective_user("/layer/python")


@attempt(Wall.NO_NEW_PRIVILEGES, Wall.NOSUID)
def run_own_set_user_id_program() -> None:
    """As another user, become root by a set-user-id program that root has put into /files."""
    path = f"/files/program-{os.getpid()}"
    os.chmod("/files", 0o755)
    Path(path).write_bytes(Path(sys.executable).read_bytes())
    os.chmod(path, 0o4755)
    os.setresuid(UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED)
    _effective_user(path)


@attempt(Wall.CAPABILITIES)
def give_file_capabilities() -> None:
    """Give a program capabilities for whoever runs it."""
    path = HOME / f"capable-{os.getpid()}"
    path.touch()
    os.setxattr(path, "security.capability", b"\1\0\0\2" + b"\xff" * 4 + bytes(12))


@attempt(Wall.CAPABILITIES)
def set_trusted_attribute() -> None:
    """Set an attribute by which overlays are steered."""
    os.setxattr("/home/session", "trusted.overlay.opaque", b"y")


@attempt(Wall.SECCOMP)
def take_file_out_of_its_quota() -> None:
    """Change the flags of a file by ioctl, as is done to take it out of its quota."""
    import fcntl

    (HOME / "flagged").touch()
    try:
        fcntl.ioctl(os.open(HOME / "flagged", os.O_RDONLY), 0x40086602, ctypes.c_long(0))
    except OSError as error:
        if error.errno == 25:
            raise Impossible("the file system has no flags") from error
        raise


# The image's layers. Inside, each of these succeeds, on a copy: it is the host that looks whether the
# layer has changed, so what an attempt reports counts for nothing.


def _rewrite(path: Path) -> None:
    path.write_text("changed")


def _rewrite_by_descriptor(path: Path) -> None:
    Path(f"/proc/self/fd/{os.open(path, os.O_PATH)}").write_text("changed")


def _rewrite_by_hard_link(path: Path) -> None:
    link = path.with_name("link")
    link.hardlink_to(path)
    link.write_text("changed")


def _rewrite_by_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[:4] = b"xxxx"


def _replace(path: Path) -> None:
    path.unlink()
    path.write_text("changed")


def _exchange(path: Path) -> None:
    other = path.with_name("other")
    other.write_text("changed")
    syscall(316, AT_FDCWD, str(path).encode(), AT_FDCWD, str(other).encode(), 2)


def _punch(path: Path) -> None:
    syscall(285, os.open(path, os.O_RDWR), 3, 0, 4)


def _whiteout(path: Path) -> None:
    # Device 0:0 is what overlays mark removed files by, and needs no capability.
    path.unlink()
    os.mknod(path, stat.S_IFCHR, 0)


LAYER_CHANGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "rewrite": ("write to it", _rewrite),
    "descriptor": ("open it again by a descriptor that names it", _rewrite_by_descriptor),
    "link": ("write to a hard link of it", _rewrite_by_hard_link),
    "mapping": ("write to a mapping of it", _rewrite_by_mapping),
    "rename": ("rename it", lambda path: path.rename(path.with_name("renamed"))),
    "replace": ("remove it and make it anew", _replace),
    "mode": ("make it a set-user-id program", lambda path: path.chmod(0o4777)),
    "owner": ("give it to another user", lambda path: os.chown(path, UNPRIVILEGED, UNPRIVILEGED)),
    "attribute": ("give it an attribute", lambda path: os.setxattr(path, "user.changed", b"yes")),
    "truncate": ("truncate it", lambda path: os.truncate(path, 0)),
    "exchange": ("exchange it with another", _exchange),
    "times": ("change its times", lambda path: os.utime(path, (1, 1))),
    "punch": ("punch a hole into it", _punch),
    "whiteout": ("put a whiteout in its place", _whiteout),
}
"""What is done to files that the layer has, each in a directory `/layer/<name>` of its own."""

for _short, (_tries, _change) in LAYER_CHANGES.items():
    add(
        f"layer_{_short}",
        f"change a file of the image's layer: {_tries}",
        partial(_change, LAYER / _short / "file"),
        Wall.LAYERS,
    )


# What the kernel shows.


def _shows(path: str) -> None:
    needs(path)
    if os.path.isdir(path):
        if not os.listdir(path):
            refuse("it is empty")
        return
    with open(path, "rb") as file:
        if not file.read(16):
            refuse("it is empty")


for _path, _extra in (
    ("/proc/kcore", (Wall.CAPABILITIES,)),
    ("/proc/keys", ()),
    ("/proc/timer_list", ()),
    ("/proc/interrupts", ()),
    ("/proc/scsi", ()),
    ("/proc/latency_stats", ()),
    ("/proc/sched_debug", ()),
    ("/sys/firmware", ()),
    ("/sys/devices/virtual/powercap", ()),
):
    add(f"read{_path.replace('/', '_')}", f"read {_path}", partial(_shows, _path), Wall.MASKED, *_extra)


def _write_same(path: str) -> None:
    # What stands there is written back, so nothing changes when it succeeds.
    text = Path(needs(path)).read_bytes()
    with open(path, "r+b", buffering=0) as file:
        file.write(text)


def _open_for_writing(path: str) -> None:
    os.close(os.open(needs(path), os.O_WRONLY))


for _path in (
    "kernel/core_pattern", "kernel/modprobe", "kernel/panic", "kernel/randomize_va_space", "kernel/perf_event_paranoid",
    "vm/overcommit_memory", "vm/max_map_count", "fs/file-max", "fs/suid_dumpable", "fs/protected_symlinks",
):  # fmt: skip
    add(
        f"write_sysctl_{_path.replace('/', '_')}",
        f"write the kernel's setting {_path}",
        partial(_write_same, f"/proc/sys/{_path}"),
        Wall.READ_ONLY,
    )
for _path in ("kernel/dmesg_restrict", "kernel/unprivileged_bpf_disabled"):
    add(
        f"write_sysctl_{_path.replace('/', '_')}",
        f"write the kernel's setting {_path}",
        partial(_write_same, f"/proc/sys/{_path}"),
        *(Wall.READ_ONLY, Wall.CAPABILITIES),
    )
for _path in ("/proc/sysrq-trigger", "/proc/irq/default_smp_affinity"):
    add(
        f"open{_path.replace('/', '_').replace('-', '_')}",
        f"open {_path} for writing",
        partial(_open_for_writing, _path),
        Wall.READ_ONLY,
    )
for _path in (
    "/sys/kernel/mm/ksm/run", "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/kernel/profiling",
    "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/devices/system/cpu/cpu1/online",
    "/sys/kernel/kexec_crash_size", "/sys/bus/platform/uevent",
):  # fmt: skip
    add(
        f"open{_path.replace('/', '_')}",
        f"open {_path} for writing",
        partial(_open_for_writing, _path),
        Wall.SYSFS,
    )
