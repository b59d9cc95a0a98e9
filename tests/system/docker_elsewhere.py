"""Run as a program: the `docker` driver beside an engine that it takes for one of another machine.

Arguments: the engine's socket, its process id, a root file system, a directory to work in. It enters the engine's network,
where containers have addresses, takes another host name, starts sandboxes of two installations, and
prints what they reached as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from dataclasses import asdict
from pathlib import Path

from cupola.sandbox.base import MIB, Sandbox, SandboxSpec
from cupola.sandbox.docker.driver import DockerDriver
from cupola.sandbox.oci import linux

CLONE_NEWUTS = 0x04000000
SERVE = """
import socket, sys, threading

def serve():
    server = socket.create_server(("0.0.0.0", 8088))
    while True:
        connection, _ = server.accept()
        request = connection.recv(100).decode()
        if request.startswith("reach "):
            try:
                socket.create_connection((request.split()[1], int(request.split()[2])), 2)
                connection.sendall(b"yes")
            except OSError:
                connection.sendall(b"no")
        else:
            connection.sendall(b"pong")
        connection.close()

threading.Thread(target=serve).start()
"""


async def main(engine: Path, base: Path, directory: Path) -> dict[str, object]:
    drivers = [DockerDriver(f"elsewhere{os.getpid()}{which}", engine) for which in ("a", "b")]
    async with contextlib.AsyncExitStack() as stack:
        for driver in drivers:
            await driver.open()
            stack.push_async_callback(clean, driver)
        one, neighbour = [await start(drivers[0], name, base, directory) for name in ("one", "two")]
        stranger = await start(drivers[1], "three", base, directory)
        return {
            "declares": asdict(drivers[0].isolation),
            "answers": [await ask(sandbox, "ping") for sandbox in (one, neighbour, stranger)],
            "reaches itself": await ask(one, f"reach {one.address[0]} 8088") == "yes",
            "reaches its neighbour": await ask(one, f"reach {neighbour.address[0]} 8088") == "yes",
            "reaches another network": await ask(one, f"reach {stranger.address[0]} 8088") == "yes",
        }


async def start(driver: DockerDriver, name: str, base: Path, directory: Path) -> Sandbox:
    spec = SandboxSpec(
        name=name,
        layers=(base,),
        arguments=("python3", "-c", SERVE),
        environment=(("PATH", "/usr/bin:/bin"),),
        working_directory="/",
        user="",
        home=directory / name / "home",
        files=directory / name / "files",
        cpu=1.0,
        memory=128 * MIB,
    )
    return await driver.start(spec, lambda *_: None)


async def clean(driver: DockerDriver) -> None:
    for name in await driver.names():
        await driver.stop(name, 0)
    await driver.close()


async def ask(sandbox: Sandbox, words: str) -> str:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(30):
        while True:
            with sandbox.open_socket() as opened:
                try:
                    await loop.sock_connect(opened, sandbox.address)
                    await loop.sock_sendall(opened, words.encode())
                    return (await loop.sock_recv(opened, 100)).decode()
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)


if __name__ == "__main__":
    socket_path, pid, root, work = sys.argv[1:]
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    linux.setns(namespace, linux.CLONE_NEWNET)
    linux.unshare(CLONE_NEWUTS)
    socket.sethostname("elsewhere")
    print(json.dumps(asyncio.run(main(Path(socket_path), Path(root), Path(work)))))
