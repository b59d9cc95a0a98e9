"""The node of a user who is not root, for tests of what a server has of it, with its supervisor.

As a program, it runs as that user; in place of a server it hands that one's ends of the sockets to the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from cupola.images.store import ImageStore
from cupola.node.privileges import give
from cupola.node.process import LANES, Node, Parts, Sockets
from cupola.node.rootless import RUN, run_rootless
from cupola.sandbox.oci.driver import OciDriver
from cupola.sandbox.oci.runtime_config import FIRST_ID
from cupola.sessions.volumes import LocalVolumes
from tests.system.as_user import NUMBER, Request
from tests.system.node import MovingDriver

DEADLINE = 60.0


@contextlib.asynccontextmanager
async def ordinary_node(folder: Path, request: Request, installation: str) -> AsyncIterator[Node]:
    """What a server has of a node that works in `folder`, which the request can write to."""
    ours, theirs = socket.socketpair()
    program = (sys.executable, "-m", "tests.system.ordinary_node", str(folder), installation, str(theirs.fileno()))
    start = functools.partial(subprocess.Popen, request.command(*program), pass_fds=(theirs.fileno(),))
    with ours, await asyncio.to_thread(start) as process:
        theirs.close()
        ours.settimeout(DEADLINE)
        _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1 + LANES)
        assert descriptors, "there is no node"
        connection, *lanes = (socket.socket(fileno=descriptor) for descriptor in descriptors)
        node = Node(Sockets(connection, tuple(lanes)), folder)
        running = asyncio.create_task(node.run())
        try:
            yield node
        finally:
            node.close()
            await running
            ours.close()
            assert await asyncio.to_thread(process.wait, DEADLINE) == 0


class GivingDriver(MovingDriver):
    """It gives the user what it moves."""

    def _volume(self, home: Path, files: Path) -> tuple[Path, Path]:
        moved = super()._volume(home, files)
        give(moved[0].parent, NUMBER, NUMBER)
        return moved


def main() -> None:
    folder, installation, descriptor = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    test = socket.socket(fileno=descriptor)
    sandboxes = folder / "sandboxes"
    parts = Parts(
        OciDriver(installation, RUN, sandboxes, rootless=True),
        ImageStore(folder / "images", first_id=FIRST_ID),
        {"volumes": LocalVolumes(folder / "volumes"), "trials": LocalVolumes(folder / "trials")},
    )

    def serve(ends: Sockets) -> None:
        socket.send_fds(test, [b"-"], [ends.connection.fileno(), *(lane.fileno() for lane in ends.lanes)])
        ends.close()
        test.recv(1)

    # Of the sockets that listen, as of this one, only the server keeps its copy.
    run_rootless(folder, folder / "root", sandboxes, installation, parts, [test], lambda: None, serve)


if __name__ == "__main__":
    main()
