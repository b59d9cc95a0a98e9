"""Attempts to use more than a sandbox's share. All are bounded: what they take is little more than the limit."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import socket
import time
from pathlib import Path

from tests.attacks.attempts.registry import Wall, attempt, host, refuse

MIB = 1 << 20
MEMORY = 256 * MIB
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

    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            _fill(MEMORY // 6, mmap.mmap(-1, MEMORY // 6).write)
            signal.pause()
        children.append(child)

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
def much_in_sockets() -> None:
    """Keep memory in sockets that nobody reads."""
    held, size = [], 0
    while size < MEMORY:
        pair = socket.socketpair()
        held.append(pair)
        pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        pair[0].setblocking(False)
        try:
            while True:
                size += pair[0].send(bytes(64 * 1024))
        except BlockingIOError:
            continue


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

    held = [socket.socketpair() for _ in range(_beyond_open_files() // 2)]
    del held


@attempt(Wall.OPEN_FILES)
def many_event_queues() -> None:
    """Have more event queues open than the limit."""

    held = [select.epoll() for _ in range(_beyond_open_files())]
    del held


def _beyond_open_files() -> int:
    return int(host("open_files")) + 100
