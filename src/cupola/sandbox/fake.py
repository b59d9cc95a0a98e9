"""The `fake` driver: sandboxes that are coroutines of this process. It proves that the contract holds without Linux.

The first argument of a sandbox names its program. It isolates nothing, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from cupola.sandbox.base import Driver, Exit, Isolation, Output, Sandbox, SandboxError, SandboxSpec


class FakeProcess:
    """What a program sees of its sandbox."""

    def __init__(self, spec: SandboxSpec, output: Output) -> None:
        self.spec = spec
        self.print = output
        self.terminate = asyncio.Event()
        """Set on SIGTERM, for programs that handle it."""
        self.handles_sigterm = False
        self.port: int | None = None
        """The host's loopback port that stands for the sandbox's port, once the program listens."""
        self.home, self.files = spec.home, spec.files
        self.standard_input: socket.socket | None = None
        self.running = asyncio.Event()
        """Cleared while the sandbox is frozen: programs wait for it before they do anything."""
        self.running.set()


Program = Callable[[FakeProcess], Awaitable[int]]
"""Runs until it returns its exit code; it is cancelled when it is killed."""


class _FakeSandbox(Sandbox):
    def __init__(self, name: str, process: FakeProcess) -> None:
        super().__init__(name)
        self._process = process
        self.running: asyncio.Task[int] | None = None

    def open_socket(self) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened

    @property
    def address(self) -> tuple[str, int]:
        # Port 1 of loopback refuses connections, as a sandbox does in which nothing listens.
        return ("127.0.0.1", self._process.port or 1)


class FakeDriver(Driver):
    """Sandboxes in process; `programs` by the first argument that starts them."""

    isolation = Isolation(filesystem=False, processes=False, network=False, resource_limits=False)
    can_attach = True

    def __init__(self, programs: Mapping[str, Program]) -> None:
        self._programs = programs
        self._sandboxes: dict[str, tuple[_FakeSandbox, FakeProcess]] = {}
        self._hurry = asyncio.Event()

    async def open(self) -> None:
        """There is nothing that could be missing."""

    async def close(self) -> None:
        """There is nothing to give up."""

    async def make(self, spec: SandboxSpec, output: Output) -> Sandbox:
        program = self._programs.get(spec.arguments[0])
        if program is None:
            raise SandboxError(f"the entry point cannot be executed: {spec.arguments[0]}")
        _make_directories(spec.home, spec.files)
        process = FakeProcess(spec, output)
        sandbox = _FakeSandbox(spec.name, process)
        if spec.channel:
            sandbox.channel, process.standard_input = socket.socketpair()
            sandbox.channel.setblocking(False)
            process.standard_input.setblocking(False)

        async def run() -> int:
            try:
                return await program(process)
            finally:
                if process.standard_input is not None:
                    process.standard_input.close()

        sandbox.running = asyncio.create_task(run(), name=f"fake sandbox {spec.name}")
        sandbox.running.add_done_callback(lambda task: sandbox.exited.set_result(_exit(task)))
        self._sandboxes[spec.name] = (sandbox, process)
        return sandbox

    async def remove(self, name: str, grace: float) -> None:
        sandbox, process = self._sandboxes.get(name, (None, None))
        if sandbox is None or process is None or sandbox.running is None:
            return
        process.running.set()
        process.terminate.set()
        if grace > 0 and process.handles_sigterm and not self._hurry.is_set():
            hurrying = asyncio.create_task(self._hurry.wait())
            await asyncio.wait({sandbox.running, hurrying}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
            hurrying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hurrying
        sandbox.running.cancel()
        await asyncio.wait([sandbox.running])
        await asyncio.wait([sandbox.exited])
        self._sandboxes.pop(name, None)

    async def freeze(self, name: str) -> None:
        if name in self._sandboxes:
            self._sandboxes[name][1].running.clear()

    def thaw(self, name: str) -> None:
        if name in self._sandboxes:
            self._sandboxes[name][1].running.set()

    async def attach(self, name: str, home: Path, files: Path) -> None:
        sandbox, process = self._sandboxes.get(name, (None, None))
        if sandbox is None or process is None or sandbox.exited.done():
            raise SandboxError("the sandbox has ended")
        _make_directories(home, files)
        process.home, process.files = home, files

    def hurry(self) -> None:
        self._hurry.set()

    async def names(self) -> frozenset[str]:
        return frozenset(self._sandboxes)


def _make_directories(*directories: Path | None) -> None:
    for directory in directories:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)


def _exit(task: asyncio.Task[int]) -> Exit:
    if task.cancelled():
        return Exit(-signal.SIGKILL)
    if task.exception() is not None:
        return Exit(1)
    return Exit(task.result())
