"""A running container of the `docker` driver, and how its agent is reached."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cupola.sandbox.base import Sandbox
from cupola.sandbox.oci import linux, process

logger = logging.getLogger(__name__)

OUTPUT_DEADLINE = 5.0
"""Seconds that the engine may take to hand on the last output of a container that has ended."""


class DockerSandbox(Sandbox):
    """A container and the tasks that belong to it. `container` is its name at the engine."""

    def __init__(self, name: str, container: str, port: int) -> None:
        super().__init__(name)
        self.container = container
        self.output: asyncio.Task[None] | None = None
        self.end: asyncio.Task[None] | None = None
        """Sets `exited`; there is none before the container has been started."""
        self.frozen = False
        self._port = port
        self._pid: int | None = None
        self._network: int | None = None
        self._sockets: ThreadPoolExecutor | None = None
        self._host = "127.0.0.1"
        self._change: asyncio.Task[None] | None = None

    def reach_by_namespace(self, pid: int, identity: str, sockets: ThreadPoolExecutor) -> bool:
        """Open sockets in the network namespace of the container's first process, by the thread of `sockets`.

        `identity` is the engine's id of the container. False when the process is not that container's, or has ended.
        """
        self._sockets = sockets
        try:
            self._network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            # Read last: while this process is the container's, it was so when the namespace was opened.
            groups = Path(f"/proc/{pid}/cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            groups = ""
        if identity not in groups:
            self._close_network()
            return False
        self._pid = pid
        return True

    def reach_by_address(self, host: str) -> None:
        """Connect to the container's address on the engine's network."""
        self._host = host

    @property
    def address(self) -> tuple[str, int]:
        return (self._host, self._port)

    def open_socket(self) -> socket.socket:
        if self._sockets is None:
            return _new_socket()
        return self._sockets.submit(self._open_in_namespace).result()

    def _open_in_namespace(self) -> socket.socket:
        if self._network is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the sandbox has ended")
        # Only this thread changes its namespace, and it enters the right one each time, so nothing has to be restored.
        linux.setns(self._network, linux.CLONE_NEWNET)
        return _new_socket()

    def listening_ports(self) -> tuple[int, ...]:
        return () if self._pid is None else process.listening_ports(self._pid)

    def may_hear_sigterm(self) -> bool:
        """False when the first process has no handler for it: it never dies of the signal then."""
        return self._pid is None or process.catches(self._pid, signal.SIGTERM)

    def change(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Do `work` once all changes that were asked for before are done."""
        previous = self._change

        async def in_turn() -> None:
            if previous is not None:
                await asyncio.wait([previous])
            await work()

        self._change = asyncio.create_task(in_turn(), name=f"change {self.name}")
        self._change.add_done_callback(self._log_failure)
        return self._change

    def _log_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("freezing or thawing %s failed: %s", self.name, error)

    async def last_output(self) -> None:
        """Wait until everything that the container has printed is taken. It has ended."""
        if self.output is not None:
            await asyncio.wait([self.output], timeout=OUTPUT_DEADLINE)

    async def close(self) -> None:
        """End the tasks, and give up the namespace."""
        tasks = [task for task in (self.output, self.end, self._change) if task is not None]
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                logger.error("a task of %s failed: %s", self.name, result)
        self._close_network()

    def _close_network(self) -> None:
        if self._network is not None:
            os.close(self._network)
            self._network = None


def _new_socket() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened
