"""Child processes by `posix_spawn` and `pidfd`: no fork of a large server, no thread per child, no lost exit status."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Collection, Sequence
from pathlib import Path

KILL_DEADLINE = 10.0
INHERIT_PAUSE = 0.001
LONGEST_PAUSE = 0.1


def spawn(arguments: Sequence[str], *, stdin: int, stdout: int, stderr: int) -> int:
    """Start a program with these descriptors and an empty environment but PATH; returns its process id.

    It has a session of its own: a terminal's Ctrl-C is for the server to handle, not for its children.
    """
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate((stdin, stdout, stderr))]
    return os.posix_spawn(
        arguments[0],
        list(arguments),
        {"PATH": os.environ.get("PATH", os.defpath)},
        file_actions=actions,
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )


def watch_exit(pid: int) -> asyncio.Future[int]:
    """A future of the child's exit status: its code, or the negative number of the signal that killed it.

    It may still be the child of a process that is about to end and leave it to us, as helpers of an OCI runtime are.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()
    descriptor = os.pidfd_open(pid)

    def on_end() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        reap(INHERIT_PAUSE)

    def reap(pause: float) -> None:
        try:
            _, status = os.waitpid(pid, 0)
        except ChildProcessError:
            # Nothing tells when it becomes ours.
            loop.call_later(pause, reap, min(2 * pause, LONGEST_PAUSE))
            return
        if not ended.done():
            ended.set_result(os.waitstatus_to_exitcode(status))

    loop.add_reader(descriptor, on_end)
    return ended


def reap_adopted(name: str, known: Collection[int]) -> None:
    """Reap dead children that we did not start ourselves: helpers of an OCI runtime, whose parent has ended.

    They are recognised by their program's name; `known` are the children of that name that someone waits for.
    """
    own = os.getpid()
    for child in map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split()):
        if child in known:
            continue
        try:
            before, _, after = Path(f"/proc/{child}/stat").read_text().rpartition(") ")
        except FileNotFoundError:
            continue
        if after.startswith("Z") and before.partition(" (")[2] == name:
            os.waitpid(child, os.WNOHANG)


def kill_by_argument(argument: str) -> None:
    """Kill every process that was started with an argument: OCI runtimes that a dead server left in the middle of work."""
    wanted = os.fsencode(argument)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
            if wanted in arguments:
                descriptor = os.pidfd_open(int(entry.name))
                try:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    select.select([descriptor], [], [], KILL_DEADLINE)
                finally:
                    os.close(descriptor)
        except (FileNotFoundError, ProcessLookupError):
            continue


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal. The first process of a sandbox never dies of one it does not handle."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    line = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def listening_ports(pid: int) -> tuple[int, ...]:
    """The TCP ports that something in the process's network namespace listens on."""
    ports: set[int] = set()
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except (FileNotFoundError, OSError):
            continue
        for line in lines:
            _, local, _, state = line.split()[:4]
            if state == "0A":
                ports.add(int(local.rpartition(":")[2], 16))
    return tuple(sorted(ports))
