"""An agent that does nothing, until it is told to run wild in some way for some seconds."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from cupola_agent import Agent, Request, Response

agent = Agent()
BLOCK = b"x" * (1 << 20)
LARGE = 2 << 30


@agent.invocations
async def invoke(request: Request) -> Response:
    asked = json.loads(request.body)
    if "bomb" in asked:
        await asyncio.create_subprocess_exec(sys.executable, __file__, asked["bomb"], str(asked["seconds"]))
    return Response(b"done")


def processor(end: float) -> None:
    for _ in range(7):
        if os.fork() == 0:
            break
    while time.monotonic() < end:
        pass


def forks(end: float) -> None:
    while time.monotonic() < end:
        # Every process goes on with forking, until the limit of the sandbox stops them all.
        with contextlib.suppress(OSError):
            os.fork()
        with contextlib.suppress(OSError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def memory(end: float) -> None:
    while time.monotonic() < end:
        if os.fork() == 0:
            held = [BLOCK + bytes([number % 256]) for number in range(1 << 20)]
            os._exit(len(held) % 2)
        os.wait()


def disk(end: float) -> None:
    path = Path("/files/large")
    with path.open("wb", buffering=0) as file:
        while time.monotonic() < end:
            if file.tell() > LARGE:
                file.truncate(0)
                file.seek(0)
            file.write(BLOCK)
    path.unlink()


def inodes(end: float) -> None:
    for number in itertools.count():
        if time.monotonic() > end:
            return
        Path(f"/files/{number}").touch()


def log(end: float) -> None:
    lines = (b"x" * 120 + b"\n") * 512
    while time.monotonic() < end:
        os.write(1, lines)


def empty_lines(end: float) -> None:
    lines = b"\n" * 65536
    while time.monotonic() < end:
        os.write(1, lines)


def sockets(end: float) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listening:
        held: list[socket.socket] = []
        while time.monotonic() < end:
            try:
                held += [socket.create_connection(listening.getsockname()), listening.accept()[0]]
            except OSError:
                while held:
                    held.pop().close()


BOMBS: dict[str, Callable[[float], None]] = {
    "processor": processor, "forks": forks, "memory": memory, "disk": disk, "inodes": inodes, "log": log,
    "empty lines": empty_lines, "sockets": sockets,
}  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 1:
        agent.run()
    else:
        BOMBS[sys.argv[1]](time.monotonic() + float(sys.argv[2]))
