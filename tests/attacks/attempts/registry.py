"""Attempts to break out, and how they are run. This and all beside it also runs inside of sandboxes: standard library only.

An attempt is a function. It returns when it has succeeded, and raises OSError when the system refused it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn, TypeVar

DEADLINE = 8.0
"""Seconds an attempt may take."""
UNPRIVILEGED = 1000


class Wall(StrEnum):
    """What an attempt may be refused by. `weakened.py` takes each of them down."""

    SECCOMP = "system call filter"
    CAPABILITIES = "capabilities"
    NO_NEW_PRIVILEGES = "no_new_privileges"
    NOSUID = "nosuid"
    NODEV = "nodev"
    DEVICES = "device control"
    MASKED = "masked paths"
    READ_ONLY = "read-only paths"
    SYSFS = "read-only sysfs"
    HOST_PATHS = "no paths of the host"
    OTHER_SESSIONS = "no folders of other sessions"
    LAYERS = "layers below a writable one"
    PID = "pid namespace"
    IPC = "ipc namespace"
    UTS = "uts namespace"
    CGROUP = "cgroup namespace"
    NETWORK = "network namespace"
    PIDS_LIMIT = "limit of processes"
    MEMORY_LIMIT = "limit of memory"
    OPEN_FILES = "limit of open files"
    CORE_LIMIT = "limit of core dumps"
    TMPFS_SIZE = "size of /dev and /dev/shm"


class Impossible(Exception):
    """This kernel or host does not have what the attempt is about, so it shows nothing."""


@dataclass(frozen=True)
class Attempt:
    """`walls` are those that refuse it, each of them alone. It runs as `user`."""

    name: str
    tries: str
    walls: frozenset[Wall]
    run: Callable[[], object]
    user: int


ATTEMPTS: dict[str, Attempt] = {}

Function = TypeVar("Function", bound=Callable[[], object])


def attempt(*walls: Wall, user: int = 0) -> Callable[[Function], Function]:
    """Register a function by its name; the first line of its docstring says what it tries."""

    def register(function: Function) -> Function:
        add(function.__name__, (function.__doc__ or "").strip(), function, *walls, user=user)
        return function

    return register


def add(name: str, tries: str, function: Callable[[], object], *walls: Wall, user: int = 0) -> None:
    """Register one of several attempts that differ by an argument."""
    if name in ATTEMPTS or not tries or not walls:
        raise ValueError(f"{name}: an attempt has a name of its own, a text and walls")
    ATTEMPTS[name] = Attempt(name, tries, frozenset(walls), function, user)


_libc = ctypes.CDLL(None, use_errno=True)


def call(function: str, *arguments: object) -> int:
    """A function of the C library. Raises OSError."""
    ctypes.set_errno(0)
    return _checked(getattr(_libc, function)(*arguments), function)


def syscall(number: int, *arguments: object) -> int:
    """A system call by its number. Raises OSError."""
    ctypes.set_errno(0)
    wide = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    _libc.syscall.restype = ctypes.c_long
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), f"system call {number}")


def _checked(result: int, what: str) -> int:
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return result


def passes(action: Callable[[], object], *judged: int) -> None:
    """For what would do harm: ask for nonsense. An error among `judged` comes from a kernel that has let the caller pass and
    only then looked at what it asked for."""
    try:
        action()
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise Impossible("this kernel does not have the call") from error
        if error.errno not in judged:
            raise


def refuse(why: str) -> NoReturn:
    """For what is refused otherwise than by an error."""
    raise OSError(errno.EACCES, why)


def needs(path: str) -> str:
    """A path that the host may not have."""
    if not os.path.lexists(path):
        raise Impossible(f"there is no {path}")
    return path


def host(name: str) -> str:
    """What the test tells about the host: where its canaries are."""
    return str(json.loads(os.environ["HOST"])[name])


def verdict(chosen: Attempt) -> str:
    """Run an attempt in a process of its own: `succeeded`, `refused: …`, `impossible: …` or `broken: …`."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        os.close(reading)
        # Where memory is short, this goes before who reports.
        Path("/proc/self/oom_score_adj").write_text("1000")
        text = _try(chosen)
        os.write(writing, text.encode()[:4000])
        os._exit(0)
    os.close(writing)
    text = _read(reading, time.monotonic() + DEADLINE)
    os.close(reading)
    for group in (child, -child):
        try:
            os.kill(group, signal.SIGKILL)
        except OSError:
            continue
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if text is None:
        return f"broken: it did not end within {DEADLINE:g} s"
    return text or f"refused: killed by signal {-status}"


def _read(descriptor: int, end: float) -> str | None:
    """What comes, nothing when nobody is left to send; None when that takes too long."""
    ready, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
    return os.read(descriptor, 4096).decode() if ready else None


def _try(chosen: Attempt) -> str:
    try:
        if chosen.user:
            os.setgroups([])
            os.setresgid(chosen.user, chosen.user, chosen.user)
            os.setresuid(chosen.user, chosen.user, chosen.user)
        chosen.run()
    except Impossible as error:
        return f"impossible: {error}"
    except MemoryError:
        return "refused: ENOMEM"
    except OSError as error:
        return f"refused: {errno.errorcode.get(error.errno or 0, '')} {error}"
    except BaseException:
        return f"broken: {traceback.format_exc()}"
    return "succeeded"


def main() -> None:
    """Run the attempts that the environment names, and print a line of JSON for each."""
    for name in json.loads(os.environ["ATTEMPTS"]):
        sys.stdout.write(json.dumps([name, verdict(ATTEMPTS[name])]) + "\n")
        sys.stdout.flush()
