"""Attempts to reach processes and namespaces that are not the sandbox's own, and to get a larger share."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from functools import partial
from pathlib import Path

from tests.attacks.attempts.registry import Wall, add, attempt, call, host, passes, refuse, syscall

NEW = {"mount": 0x20000, "uts": 0x4000000, "ipc": 0x8000000, "pid": 0x20000000, "net": 0x40000000, "cgroup": 0x2000000}
NEW_USER, NEW_TIME = 0x10000000, 0x80
PIDFD_KINDS = {"mount": "mnt"}


def _clone(flags: int) -> None:
    child = syscall(56, flags | signal.SIGCHLD, None, None, None, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _clone3(flags: int) -> None:
    child = syscall(435, (ctypes.c_uint64 * 8)(flags, 0, 0, 0, signal.SIGCHLD), 64)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _setns(kind: str) -> None:
    opened = os.open(f"/proc/self/ns/{PIDFD_KINDS.get(kind, kind)}", os.O_RDONLY)
    call("setns", opened, 0)


for _kind, _flag in NEW.items():
    _walls = (Wall.SECCOMP, Wall.CAPABILITIES)
    add(f"unshare_{_kind}", f"make a new {_kind} namespace", partial(call, "unshare", _flag), *_walls)
    add(f"clone_{_kind}", f"start a process in a new {_kind} namespace", partial(_clone, _flag), *_walls)
    add(f"setns_{_kind}", f"enter a {_kind} namespace", partial(_setns, _kind), *_walls)
add("unshare_time", "make a new time namespace", partial(call, "unshare", NEW_TIME), Wall.SECCOMP, Wall.CAPABILITIES)
add("unshare_user", "make a new user namespace", partial(call, "unshare", NEW_USER), Wall.SECCOMP)
add("clone_user", "start a process in a new user namespace", partial(_clone, NEW_USER), Wall.SECCOMP)
add(
    "clone3_user", "start a process in a new user namespace by the newer call", partial(_clone3, NEW_USER), Wall.SECCOMP
)
add(
    "unshare_user_and_mounts",
    "become root of a user namespace, to mount things there",
    partial(call, "unshare", NEW_USER | NEW["mount"]),
    Wall.SECCOMP,
)
add(
    "unshare_user_and_network",
    "become root of a user namespace, to reach the packet filter's code",
    partial(call, "unshare", NEW_USER | NEW["net"]),
    Wall.SECCOMP,
)


@attempt(Wall.SECCOMP)
def trace_a_child() -> None:
    """Attach to a process of its own as a debugger."""
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        syscall(101, 16, child, None, None)
    finally:
        os.kill(child, signal.SIGKILL)


@attempt(Wall.SECCOMP)
def trace_process_1() -> None:
    """Seize the sandbox's first process as a debugger."""
    syscall(101, 0x4206, os.getppid(), None, None)


# The host has a process that waits: the canary.


def canary() -> int:
    return int(host("canary"))


def _is_canary() -> None:
    # Inside, the number may be that of a process of the sandbox.
    if b"canary-secret" not in Path(f"/proc/{canary()}/cmdline").read_bytes():
        raise ProcessLookupError(errno.ESRCH, "another process has that number")


def _signal() -> None:
    _is_canary()
    os.kill(canary(), signal.SIGUSR1)


def _signal_by_descriptor() -> None:
    _is_canary()
    signal.pidfd_send_signal(os.pidfd_open(canary()), signal.SIGUSR1)


def _queue_signal() -> None:
    _is_canary()
    passes(lambda: syscall(129, canary(), signal.SIGUSR1, (ctypes.c_int * 32)(signal.SIGUSR1, 0, -1)))


def _slow_down() -> None:
    _is_canary()
    os.setpriority(os.PRIO_PROCESS, canary(), 5)


def _move_to_one_processor() -> None:
    _is_canary()
    os.sched_setaffinity(canary(), {0})


def _see_all() -> None:
    if not any(b"canary-secret" in _arguments(name) for name in os.listdir("/proc") if name.isdecimal()):
        refuse("it is not there")


def _arguments(process: str) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


for _name, _tries, _run in (
    ("see_host_processes", "see processes of the host", _see_all),
    ("read_host_arguments", "read the arguments of a process of the host", _is_canary),
    ("signal_host_process", "send a signal to a process of the host", _signal),
    ("signal_host_process_by_descriptor", "send it a signal by pidfd", _signal_by_descriptor),
    ("queue_signal_to_host_process", "send it a signal with a value", _queue_signal),
):
    add(_name, _tries, _run, Wall.PID)


def _host_environment() -> None:
    _is_canary()
    Path(f"/proc/{canary()}/environ").read_bytes()


def _host_root() -> None:
    _is_canary()
    os.listdir(f"/proc/{canary()}/root/")


def _host_memory() -> None:
    _is_canary()
    with open(f"/proc/{canary()}/mem", "rb", buffering=0):
        pass


def _host_descriptors() -> None:
    _is_canary()
    os.listdir(f"/proc/{canary()}/fd")
    os.readlink(f"/proc/{canary()}/fd/0")


for _name, _tries, _run in (
    ("slow_host_process_down", "lower the priority of a process of the host", _slow_down),
    ("pin_host_process", "bind a process of the host to one processor", _move_to_one_processor),
    ("read_host_environment", "read the environment of a process of the host", _host_environment),
    ("walk_host_root", "go through the root of a process of the host", _host_root),
    ("open_host_memory", "open the memory of a process of the host", _host_memory),
    ("read_host_descriptors", "read what files a process of the host has open", _host_descriptors),
):
    add(_name, _tries, _run, Wall.PID, Wall.CAPABILITIES)


# Memory that processes share, queues, names.


@attempt(Wall.IPC)
def attach_host_shared_memory() -> None:
    """Attach shared memory of the host."""
    call("shmget", int(host("key")), 16, 0)


@attempt(Wall.IPC)
def use_host_semaphore() -> None:
    """Open semaphores of the host."""
    call("semget", int(host("key")), 1, 0)


@attempt(Wall.IPC)
def use_host_message_queue() -> None:
    """Open a message queue of the host."""
    call("msgget", int(host("key")), 0)


@attempt(Wall.IPC)
def use_host_posix_queue() -> None:
    """Open a POSIX message queue of the host by its name."""
    syscall(240, host("queue").encode(), os.O_RDWR, 0, None)


@attempt(Wall.UTS)
def learn_host_name() -> None:
    """Learn the host's name."""
    if os.uname().nodename != host("hostname"):
        refuse("it has a name of its own")


@attempt(Wall.CGROUP)
def learn_control_group() -> None:
    """Learn where the host keeps it: the installation's and the sandbox's names."""
    if "cupola-" not in Path("/proc/self/cgroup").read_text():
        refuse("it sees a root of its own")


# A larger share.


@attempt(Wall.CAPABILITIES)
def raise_priority() -> None:
    """Go before all others on the processors."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)


@attempt(Wall.CAPABILITIES)
def go_before_others_on_the_disk() -> None:
    """Go before all others on the disk."""
    syscall(251, 1, 0, 1 << 13)


def _set_limit(kind: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(kind, (soft, hard))
    except ValueError as error:
        raise PermissionError(errno.EPERM, str(error)) from error


@attempt(Wall.CAPABILITIES)
def raise_open_files() -> None:
    """Raise the limit of open files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _set_limit(resource.RLIMIT_NOFILE, hard + 1, hard + 1)


@attempt(Wall.CORE_LIMIT)
def write_core_dumps() -> None:
    """Have core dumps written, which the host's handler gets."""
    _set_limit(resource.RLIMIT_CORE, 4096, 4096)


@attempt(Wall.CAPABILITIES)
def survive_lack_of_memory() -> None:
    """Let the kernel kill others first when there is no memory."""
    Path("/proc/self/oom_score_adj").write_text("-1000")


@attempt(Wall.SECCOMP, Wall.CAPABILITIES)
def permit_file_accesses() -> None:
    """Have a say in every access to a file system."""
    passes(lambda: syscall(300, 0x4, 0), errno.EINVAL)
