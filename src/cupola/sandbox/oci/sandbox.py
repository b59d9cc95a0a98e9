"""A running container, as the gateway reaches it."""

from __future__ import annotations

import errno
import socket
from concurrent.futures import ThreadPoolExecutor

from cupola.sandbox.base import Sandbox, ThawFile
from cupola.sandbox.oci import linux, process
from cupola.sandbox.oci.cgroup import ControlGroups
from cupola.sandbox.oci.runtime_config import User


class OciSandbox(Sandbox):
    """A running container: its first process is a child of ours, so the process id cannot be reused under us."""

    def __init__(
        self,
        name: str,
        pid: int,
        network: int,
        platform_ports: frozenset[int],
        port: int,
        user: User,
        sockets: ThreadPoolExecutor,
        groups: ControlGroups,
    ) -> None:
        super().__init__(name)
        self.pid = pid
        self.user = user
        self._network: int | None = network
        self._platform_ports = platform_ports
        self._port = port
        self._sockets = sockets
        self._groups = groups

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self._port)

    def open_socket(self) -> socket.socket:
        return self._sockets.submit(self._open_socket).result()

    def _open_socket(self) -> socket.socket:
        if self._network is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the sandbox has ended")
        # Only this thread changes its namespace, and it enters the right one each time, so nothing has to be restored.
        linux.setns(self._network, linux.CLONE_NEWNET)
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    def open_thaw_file(self) -> ThawFile | None:
        return self._groups.open_thaw_file(self.name)

    def listening_ports(self) -> tuple[int, ...]:
        return tuple(port for port in process.listening_ports(self.pid) if port not in self._platform_ports)

    def close(self) -> None:
        self._network = None
