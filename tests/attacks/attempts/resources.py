"""Attempts to use more than a sandbox's share. All are bounded: what they take is little more than the limit."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

from tests.attacks.attempts.registry import Wall, attempt, host, refuse

MIB = 1 << 20
MEMORY = 448 * MIB
"""More than the sandbox may have."""


@attempt(Wall.PIDS_LIMIT)
def many_processes() -> None:
    """Have more processes than the limit."""
    reading, _ = os.pipe()
    for _ in range(int(host("processes")) + 20):
        if os.fork() == 0:
            os.read(reading, 1)
            os._exit(0)


@attempt(Wall.PIDS_LIMIT)
def many_threads() -> None:
    """Have more threads than the limit."""
    import _thread
    import threading

    threading.stack_size(64 * 1024)
    wait = _thread.allocate_lock()
    wait.acquire()
    try:
        for _ in range(int(host("processes")) + 20):
            _thread.start_new_thread(wait.acquire, ())
    except RuntimeError as error:
        raise OSError(11, str(error)) from error


def _fill(size: int, write: object) -> None:
    block = bytes(MIB)
    for _ in range(size // MIB):
        write(block)  # type: ignore[operator]


@attempt(Wall.MEMORY_LIMIT)
def much_memory() -> None:
    """Use more memory than the limit."""
    _fill(MEMORY, mmap.mmap(-1, MEMORY).write)


@attempt(Wall.MEMORY_LIMIT)
def much_memory_in_children() -> None:
    """Use more memory than the limit, each process a little."""
    import signal

    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            _fill(MEMORY // 6, mmap.mmap(-1, MEMORY // 6).write)
            signal.pause()
        children.append(child)
    import time

    time.sleep(1)
    for child in children:
        if os.waitpid(child, os.WNOHANG)[0]:
            refuse("a child was killed")


@attempt(Wall.MEMORY_LIMIT)
def much_memory_file() -> None:
    """Fill a file that is memory."""
    opened = os.memfd_create("attempt")
    _fill(MEMORY, lambda block: os.write(opened, block))


@attempt(Wall.MEMORY_LIMIT)
def much_shared_memory() -> None:
    """Fill System V shared memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    identifier = libc.shmget(0, MEMORY, 0o1600)
    if identifier < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    libc.shmat.restype = ctypes.c_void_p
    address = libc.shmat(identifier, None, 0)
    # It goes when the process does.
    libc.shmctl(identifier, 0, None)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "shmat")
    ctypes.memset(address, 1, MEMORY)


@attempt(Wall.MEMORY_LIMIT)
def much_in_pipes() -> None:
    """Keep memory in pipes that nobody reads."""
    held = []
    for _ in range(MEMORY // MIB):
        reading, writing = os.pipe()
        held.append(reading)
        import fcntl

        os.set_blocking(writing, False)
        try:
            size = fcntl.fcntl(writing, 1031, MIB)
        except PermissionError:
            size = 65536
        os.write(writing, bytes(size))
        if len(held) * size > MEMORY:
            return
    refuse("pipes do not hold as much")


def _fill_file(path: str, size: int) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            _fill(size, file.write)
    finally:
        Path(path).unlink()


@attempt(Wall.TMPFS_SIZE)
def fill_dev_shm() -> None:
    """Put more into /dev/shm than it may hold."""
    _fill_file(f"/dev/shm/filled-{os.getpid()}", 70 * MIB)


@attempt(Wall.TMPFS_SIZE)
def fill_dev() -> None:
    """Put more into /dev than it may hold."""
    _fill_file(f"/dev/filled-{os.getpid()}", 70 * MIB)


@attempt(Wall.OPEN_FILES)
def many_open_files() -> None:
    """Have more files open than the limit."""
    opened = os.open("/dev/null", os.O_RDONLY)
    for _ in range(_beyond_open_files()):
        os.dup(opened)


@attempt(Wall.OPEN_FILES)
def many_sockets() -> None:
    """Have more sockets open than the limit."""
    import socket

    held = [socket.socketpair() for _ in range(_beyond_open_files() // 2)]
    del held


@attempt(Wall.OPEN_FILES)
def many_event_queues() -> None:
    """Have more event queues open than the limit."""
    import select

    held = [select.epoll() for _ in range(_beyond_open_files())]
    del held


def _beyond_open_files() -> int:
    return int(host("open_files")) + 100
