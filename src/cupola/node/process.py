"""Two processes: the node, which stays what it is, and the server, which it forks and which gives its rights up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from cupola.domain.errors import CupolaError
from cupola.images.store import ImageStore
from cupola.node import messages as wire
from cupola.node.client import Lanes, NodeClient, NodeLost
from cupola.node.driver import NodeDriver
from cupola.node.frames import Connection, Lane
from cupola.node.images import NodeImages
from cupola.node.privileges import die_with_parent
from cupola.node.service import NodeService
from cupola.node.volumes import NodeVolumes
from cupola.sandbox.base import Driver, SandboxError
from cupola.sessions.volumes import LocalVolumes

LANES = 8
"""Threads of the server that can wait for the node at a time."""


@dataclass(frozen=True)
class Sockets:
    """The ends of one side: the connection's, and those of the lanes."""

    connection: socket.socket
    lanes: tuple[socket.socket, ...]

    @classmethod
    def pairs(cls) -> tuple[Sockets, Sockets]:
        """The ends of the server and of the node."""
        ours, theirs = zip(*(socket.socketpair() for _ in range(1 + LANES)), strict=True)
        return cls(ours[0], ours[1:]), cls(theirs[0], theirs[1:])

    def close(self) -> None:
        for opened in (self.connection, *self.lanes):
            opened.close()


class Node:
    """What the server has of its node. Make it within the event loop; it works while `run` does."""

    def __init__(self, sockets: Sockets, folder: Path) -> None:
        self._client = NodeClient(Connection(sockets.connection), folder)
        self._lanes = Lanes([Lane(lane) for lane in sockets.lanes], folder)
        self.driver = NodeDriver(self._client, self._lanes)
        self.images = NodeImages(self._client)
        self.volumes = NodeVolumes(self._lanes, "volumes", folder / "volumes")
        self.trials = NodeVolumes(self._lanes, "trials", folder / "trials")

    async def run(self) -> None:
        """Returns when the node has gone."""
        try:
            await self._client.run()
        finally:
            self.driver.lost()

    def close(self) -> None:
        """Let the node go: it then removes what is left, and ends."""
        self._client.close()
        self._lanes.close()


@dataclass(frozen=True)
class Parts:
    """What sandboxes are made with. None of it has been opened."""

    driver: Driver
    images: ImageStore
    volumes: Mapping[wire.VolumeKind, LocalVolumes]

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Use them for the length of the block. Raises CupolaError when no sandboxes can be made here."""
        try:
            await self.driver.open()
        except SandboxError as error:
            raise CupolaError("driver", f"Sandboxes cannot be made on this machine: {error}.") from error
        try:
            yield
        finally:
            await self.driver.close()
            await self.images.close()


async def serve_node(sockets: Sockets, folder: Path, parts: Parts) -> None:
    """Be the node of a server until that has gone. Raises CupolaError when no sandboxes can be made here."""
    async with parts.opened():
        lanes = [Lane(lane) for lane in sockets.lanes]
        await NodeService(
            Connection(sockets.connection), lanes, folder, parts.driver, parts.images, parts.volumes
        ).run()


def run_apart(
    folder: Path,
    parts: Parts,
    listening: Sequence[socket.socket],
    prepare: Callable[[], None],
    serve: Callable[[Sockets], None],
) -> None:
    """Fork: the child calls `prepare` and `serve`, this process is its node until it ends. No thread may exist yet.

    The sockets that listen are the child's alone. Signals to end go to this process, which passes them on. Raises SystemExit
    with the child's status unless that is 0.
    """
    server_end, node_end = Sockets.pairs()
    node = os.getpid()
    child = os.fork()
    if child == 0:
        node_end.close()
        os._exit(be_the_server(node, prepare, lambda: serve(server_end)))
    server_end.close()
    for opened in listening:
        opened.close()
    status = uvloop.run(_be_the_node(child, node_end, folder, parts))
    if status != 0:
        sys.exit(status if status > 0 else 128 - status)


def be_the_server(node: int, prepare: Callable[[], None], serve: Callable[[], None]) -> int:
    """The status to exit with. The stack above belongs to the node: nothing may be unwound."""
    try:
        # A terminal's Ctrl-C is for the node, which passes it on once.
        os.setpgid(0, 0)
        prepare()
        die_with_parent(node)
        serve()
    except NodeLost:
        return 1  # the node tells why
    except CupolaError as error:
        sys.stderr.write(f"cupola: {error.message}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


async def _be_the_node(child: int, sockets: Sockets, folder: Path, parts: Parts) -> int:
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    watched = os.pidfd_open(child)

    def pass_on(number: int) -> None:
        if not ended.done():
            signal.pidfd_send_signal(watched, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, pass_on, number)

    def reap() -> None:
        loop.remove_reader(watched)
        os.close(watched)
        ended.set_result(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    loop.add_reader(watched, reap)
    try:
        await serve_node(sockets, folder, parts)
    finally:
        if not ended.done():
            # Without its node the server cannot do anything; it is told by the connection, which is closed now.
            sockets.close()
        status: int = await ended
    return status
