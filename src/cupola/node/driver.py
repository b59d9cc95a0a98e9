"""The node's sandboxes, as a driver of the server."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from pathlib import Path

from cupola.node import messages as wire
from cupola.node.client import Lanes, NodeClient, NodeLost
from cupola.sandbox.base import Driver, Exit, Output, Sandbox, SandboxSpec, ThawFile, unbroken
from cupola.sandbox.oci.pipes import OutputBudget, OutputPipe

LOST = Exit(-9, reason="the part of the server that makes sandboxes has ended")


class NodeSandbox(Sandbox):
    """A sandbox of the node.

    What its next request after a rest needs is here already, so that none waits for the node: the file that thaws it, and
    a socket into it.
    """

    def __init__(
        self,
        name: str,
        exited: asyncio.Future[Exit],
        address: tuple[str, int],
        lanes: Lanes,
        pipes: tuple[OutputPipe, ...],
        thaw_file: ThawFile | None,
    ) -> None:
        super().__init__(name, exited)
        self._address = address
        self._lanes = lanes
        self._pipes = pipes
        self._thaw_file = thaw_file
        self._spare: socket.socket | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    def open_socket(self) -> socket.socket:
        opened, self._spare = self._spare, None
        if opened is not None:
            return opened
        _, descriptors = self._lanes.ask_quickly(wire.OpenSocket(self.name), None)
        if not descriptors:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the sandbox has ended")
        return _socket_of(descriptors[0])

    def keep(self, opened: socket.socket) -> None:
        """Take a socket for the next `open_socket`."""
        if self._closed or self._spare is not None:
            opened.close()
        else:
            self._spare = opened

    def thaw(self) -> None:
        """Let it run again. By any thread."""
        if self._thaw_file is None:
            self._lanes.ask_quickly(wire.Thaw(self.name), None)
            return
        # Nobody may find another file at the descriptor.
        with self._lock:
            if not self._closed:
                self._thaw_file.thaw()

    def listening_ports(self) -> tuple[int, ...]:
        ports: tuple[int, ...] = self._lanes.ask_quickly(wire.ListeningPorts(self.name), tuple[int, ...])[0]
        return ports

    def close(self) -> None:
        """Give up what belongs to it. It has ended."""
        with self._lock:
            self._closed = True
            if self._thaw_file is not None:
                os.close(self._thaw_file.descriptor)
        if self._spare is not None:
            self._spare.close()
        for pipe in self._pipes:
            pipe.finish()


def _socket_of(descriptor: int) -> socket.socket:
    opened = socket.socket(fileno=descriptor)
    opened.setblocking(False)
    return opened


class NodeDriver(Driver):
    """Makes sandboxes by asking the node."""

    def __init__(self, client: NodeClient, lanes: Lanes) -> None:
        self._client = client
        self._lanes = lanes
        self._outputs: dict[str, Output] = {}
        self._exits: dict[str, asyncio.Future[Exit]] = {}
        self._sandboxes: dict[str, NodeSandbox] = {}
        self._budget = OutputBudget()
        client.printed = self._on_printed
        client.ended = self._on_ended

    async def open(self) -> None:
        opened: wire.Opened = await self._client.ask(wire.Open(), wire.Opened)
        self.isolation = opened.isolation
        self.can_attach = opened.can_attach
        self.can_freeze = opened.can_freeze
        self.no_egress = opened.no_egress

    async def close(self) -> None:
        """The node closes its driver itself."""

    def lost(self) -> None:
        """The node has gone, and every sandbox with it."""
        for exited in self._exits.values():
            if not exited.done():
                exited.set_result(LOST)

    def _on_printed(self, event: wire.Printed) -> None:
        output = self._outputs.get(event.sandbox)
        if output is not None:
            output(event.stream, event.data)

    def _on_ended(self, event: wire.Ended) -> None:
        exited = self._exits.get(event.sandbox)
        if exited is not None and not exited.done():
            exited.set_result(event.exit)

    async def make(self, spec: SandboxSpec, output: Output) -> Sandbox:
        # Before it is asked for: what it prints may come first.
        self._outputs[spec.name] = output
        exited = self._exits[spec.name] = asyncio.get_running_loop().create_future()
        started, descriptors = await self._client.ask_for_descriptors(wire.Start(spec), wire.Started)
        pipes = tuple(OutputPipe(stream, descriptors.pop(0), output, self._budget) for stream in started.pipes)
        thaw_file = ThawFile(descriptors.pop(0), started.thaw_order) if started.thaw_order else None
        sandbox = NodeSandbox(spec.name, exited, started.address, self._lanes, pipes, thaw_file)
        self._sandboxes[spec.name] = sandbox
        if descriptors:
            sandbox.channel = _socket_of(descriptors.pop())
        return sandbox

    async def remove(self, name: str, grace: float) -> None:
        try:
            await self._client.ask(wire.Stop(name, grace), None)
        except NodeLost:
            self.lost()
        sandbox = self._sandboxes.pop(name, None)
        if sandbox is not None:
            sandbox.close()
        self._outputs.pop(name, None)
        self._exits.pop(name, None)

    async def freeze(self, name: str) -> None:
        _, descriptors = await self._client.ask_for_descriptors(wire.Freeze(name), None)
        for opened in map(_socket_of, descriptors):
            if name in self._sandboxes:
                self._sandboxes[name].keep(opened)
            else:
                opened.close()

    def thaw(self, name: str) -> None:
        if name in self._sandboxes:
            self._sandboxes[name].thaw()

    async def attach(self, name: str, home: Path, files: Path) -> None:
        await unbroken(self._client.ask(wire.Attach(name, home, files), None))

    def hurry(self) -> None:
        self._client.tell(wire.Hurry())

    async def names(self) -> frozenset[str]:
        names: tuple[str, ...] = await self._client.ask(wire.ListSandboxes(), tuple[str, ...])
        return frozenset(names)
