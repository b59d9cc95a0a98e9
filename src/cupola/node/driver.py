"""The node's sandboxes, as a driver of the server."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

from cupola.node import messages as wire
from cupola.node.client import Lanes, NodeClient, NodeLost
from cupola.sandbox.base import Driver, Exit, Output, Sandbox, SandboxSpec, unbroken
from cupola.sandbox.oci.pipes import OutputBudget, OutputPipe

LOST = Exit(-9, reason="the part of the server that makes sandboxes has ended")


class NodeSandbox(Sandbox):
    """A sandbox of the node."""

    def __init__(self, name: str, exited: asyncio.Future[Exit], address: tuple[str, int], lanes: Lanes) -> None:
        super().__init__(name, exited)
        self._address = address
        self._lanes = lanes

    @property
    def address(self) -> tuple[str, int]:
        return self._address

    def open_socket(self) -> socket.socket:
        _, descriptors = self._lanes.ask_quickly(wire.OpenSocket(self.name), None)
        if not descriptors:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "the sandbox has ended")
        opened = socket.socket(fileno=descriptors[0])
        opened.setblocking(False)
        return opened

    def listening_ports(self) -> tuple[int, ...]:
        ports: tuple[int, ...] = self._lanes.ask_quickly(wire.ListeningPorts(self.name), tuple[int, ...])[0]
        return ports


class NodeDriver(Driver):
    """Makes sandboxes by asking the node."""

    def __init__(self, client: NodeClient, lanes: Lanes) -> None:
        self._client = client
        self._lanes = lanes
        self._outputs: dict[str, Output] = {}
        self._exits: dict[str, asyncio.Future[Exit]] = {}
        self._pipes: dict[str, tuple[OutputPipe, ...]] = {}
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
        sandbox = NodeSandbox(spec.name, exited, started.address, self._lanes)
        self._pipes[spec.name] = tuple(
            OutputPipe(stream, descriptors.pop(0), output, self._budget) for stream in started.pipes
        )
        if descriptors:
            sandbox.channel = socket.socket(fileno=descriptors.pop())
            sandbox.channel.setblocking(False)
        return sandbox

    async def remove(self, name: str, grace: float) -> None:
        try:
            await self._client.ask(wire.Stop(name, grace), None)
        except NodeLost:
            self.lost()
        for pipe in self._pipes.pop(name, ()):
            pipe.finish()
        self._outputs.pop(name, None)
        self._exits.pop(name, None)

    async def freeze(self, name: str) -> None:
        await self._client.ask(wire.Freeze(name), None)

    def thaw(self, name: str) -> None:
        self._lanes.ask_quickly(wire.Thaw(name), None)

    async def attach(self, name: str, home: Path, files: Path) -> None:
        await unbroken(self._client.ask(wire.Attach(name, home, files), None))

    def hurry(self) -> None:
        self._client.tell(wire.Hurry())

    async def names(self) -> frozenset[str]:
        names: tuple[str, ...] = await self._client.ask(wire.ListSandboxes(), tuple[str, ...])
        return frozenset(names)
