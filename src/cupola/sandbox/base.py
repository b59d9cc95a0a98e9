"""The driver contract: what makes sandboxes, and what a sandbox is.

A driver derives everything it makes (cgroup, mount, directory, runtime state) from the installation's name and the
sandbox's. So a crash at any point needs no journal: `names` finds whatever is there, whole or half made, and `stop`
removes it. `tests/system/test_driver_contract.py` holds every driver to this.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cupola.domain.egress import NO_EGRESS, EgressPolicy

Stream = Literal["stdout", "stderr", "status"]
"""What the sandbox prints, and as `status` what the platform has to say about it, in whole lines."""
Output = Callable[[Stream, bytes], None]
"""Takes what the sandbox prints, from its first byte on, in the order of each stream."""

MIB = 1024 * 1024
AUTHORITIES = "/etc/cupola-authorities.pem"
"""The file inside a sandbox with the authorities by which it knows the platform and others."""


@dataclass(frozen=True)
class SandboxSpec:
    """What to run and within which bounds.

    `name` is unique, made of lower-case letters, digits and hyphens, at most 63. `layers` are directories, lowest
    first. `user` is as in an image's config: empty, a name or number, with an optional group after a colon.
    `home` is a durable host directory that becomes the sandbox's `$HOME`; `files` becomes `/files`; a sandbox that is
    made before it is known whose it will be has neither, and gets them by `Driver.attach`. With `channel` the
    program's standard input is a stream socket whose other end is `Sandbox.channel`; else it is empty. `cpu` is in
    cores, `memory` in bytes. `egress` is what it may reach beside the platform. `authority` is a certificate in PEM that the
    sandbox finds in `AUTHORITIES` beside the public ones, if it is given and the driver gives sandboxes the platform.
    """

    name: str
    layers: tuple[Path, ...]
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    working_directory: str
    user: str
    home: Path | None
    files: Path | None
    cpu: float
    memory: int
    port: int = 8088
    hostname: str = "agent"
    channel: bool = False
    egress: EgressPolicy = NO_EGRESS
    authority: str = ""


@dataclass(frozen=True)
class Exit:
    """How a sandbox ended. `code` is the exit status, or the negative number of the signal that killed it.

    `reason` says why, in words, when the driver itself has ended it for a limit.
    """

    code: int
    out_of_memory: bool = False
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"was stopped because {self.reason}"
        if self.out_of_memory:
            return "was killed because it used more memory than its limit"
        if self.code < 0:
            return f"was killed by signal {-self.code}"
        return f"exited with code {self.code}"


@dataclass(frozen=True)
class Isolation:
    """What a driver promises to keep apart. Tests fail when a driver gives less than it declares."""

    filesystem: bool
    processes: bool
    network: bool
    resource_limits: bool


class SandboxError(Exception):
    """A sandbox could not be made; the message says why, in words for the owner of the agent."""


@dataclass(frozen=True)
class ThawFile:
    """A file that lets one sandbox run again when `order` is written to it, by whoever holds the descriptor."""

    descriptor: int
    order: bytes

    def thaw(self) -> None:
        """Let the sandbox run again, if it has not ended."""
        try:
            os.write(self.descriptor, self.order)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


@dataclass
class Sandbox:
    """A started sandbox. `exited` is set once its first process has ended.

    `channel` is the platform's non-blocking end of the program's standard input, if the specification asked for one;
    who takes it closes it.
    """

    name: str
    exited: asyncio.Future[Exit] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    channel: socket.socket | None = None

    def open_socket(self) -> socket.socket:
        """A new non-blocking TCP socket that reaches the sandbox's own loopback once connected. Never blocks for long.

        Raises ConnectionRefusedError when the sandbox has ended.
        """
        raise NotImplementedError

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect a socket of `open_socket` to reach the agent's port."""
        raise NotImplementedError

    def open_thaw_file(self) -> ThawFile | None:
        """What `Driver.thaw` comes to, for a process without the driver's rights; None where there is no such file.

        The descriptor is the caller's to close.
        """
        return None

    def listening_ports(self) -> tuple[int, ...]:
        """The TCP ports something listens on inside: for telling why an agent never became ready."""
        return ()


def in_loop(sandbox: Sandbox, work: Callable[[], object]) -> None:
    """Do what has to be done in the event loop of a sandbox: at once when this is it, else as soon as it can."""
    loop = sandbox.exited.get_loop()
    try:
        here = asyncio.get_running_loop() is loop
    except RuntimeError:
        here = False
    if here:
        work()
    else:
        loop.call_soon_threadsafe(work)


async def unbroken(work: Coroutine[Any, Any, None]) -> None:
    """Await `work` to its end, even if the caller is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()


class Driver(ABC):
    """Makes and removes sandboxes. All methods are safe to call at once for different names."""

    isolation: Isolation
    can_attach: bool
    """Whether `attach` and `SandboxSpec.channel` are possible."""
    can_freeze: bool = True
    """Whether `freeze` does anything, once it is open."""
    no_egress: str | None = None
    """Why its sandboxes can have no way out, once it is open; None when they can."""

    @abstractmethod
    async def open(self) -> None:
        """Check that sandboxes can be made here and get ready. Raises SandboxError that says what is missing."""

    @abstractmethod
    async def close(self) -> None:
        """Give up what `open` took. Sandboxes must have been stopped before."""

    async def start(self, spec: SandboxSpec, output: Output) -> Sandbox:
        """Make the sandbox and start its process; returns once the process exists, not when it is ready.

        Raises SandboxError. On an error or cancellation nothing is left behind.
        """
        making = asyncio.ensure_future(self.make(spec, output))
        try:
            return await asyncio.shield(making)
        except BaseException:
            # What is cut off in the middle leaves things that nobody knows of, so it is waited for and then undone.
            await unbroken(self._undo(making, spec.name))
            raise

    async def _undo(self, making: asyncio.Future[Sandbox], name: str) -> None:
        (made,) = await asyncio.gather(making, return_exceptions=True)
        await self.remove(name, 0)
        if isinstance(made, Sandbox) and made.channel is not None:
            made.channel.close()

    async def stop(self, name: str, grace: float) -> None:
        """End the sandbox and remove all that belongs to it, except its durable directories.

        SIGTERM first, SIGKILL after `grace` seconds; 0 kills at once. A name that is unknown, half made or already
        stopped is fine: the contract is that afterwards nothing of it exists, even when the caller is cancelled.
        """
        await unbroken(self.remove(name, grace))

    @abstractmethod
    async def freeze(self, name: str) -> None:
        """Let no process of the sandbox run until `thaw`; what it holds in memory stays. Its sockets can still be connected.

        A frozen sandbox can be stopped: it is thawed first, so that it hears the SIGTERM. Freezing what has ended is fine.
        """

    @abstractmethod
    def thaw(self, name: str) -> None:
        """Let a frozen sandbox run again; takes well below a millisecond. Thawing what is not frozen or has ended is fine.

        Unlike the other methods it may be called by any thread.
        """

    @abstractmethod
    async def attach(self, name: str, home: Path, files: Path) -> None:
        """Put durable directories into a running sandbox that was made without.

        What is below `$HOME` and `/files` before is hidden; a process sees the new directories by their paths, not by
        descriptors it holds. It is done whole even when the caller is cancelled. Raises SandboxError when the sandbox has
        ended or the driver cannot do it.
        """

    @abstractmethod
    async def make(self, spec: SandboxSpec, output: Output) -> Sandbox:
        """What `start` does; never cancelled, and followed by `remove` when it raises."""

    @abstractmethod
    async def remove(self, name: str, grace: float) -> None:
        """What `stop` does; never cancelled."""

    @abstractmethod
    def hurry(self) -> None:
        """Let stops that are under way, and all later ones, kill at once."""

    @abstractmethod
    async def names(self) -> frozenset[str]:
        """The names of all sandboxes of this installation that exist or half exist, of this process or a dead one."""
