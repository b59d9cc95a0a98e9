"""The `docker` driver: containers of a Docker engine, for hosts where no OCI runtime can be run directly.

A sandbox called N is the container `cupola-{installation}-N`, which says so in its labels; an engine's image is made of the
layers of the sandbox when it is first needed. Where this process is root on the engine's own machine, containers have no
network but loopback, and sockets are opened inside their network namespace. Else they are on a network of the installation
that leads nowhere else, and their address is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from cupola.domain.egress import EgressMode
from cupola.sandbox.base import Driver, Exit, Isolation, Output, Sandbox, SandboxError, SandboxSpec
from cupola.sandbox.docker.container import container_config
from cupola.sandbox.docker.engine import Engine, EngineError
from cupola.sandbox.docker.images import CONFLICT, NOT_FOUND, EngineImages
from cupola.sandbox.docker.requirements import faults
from cupola.sandbox.docker.sandbox import DockerSandbox
from cupola.sandbox.oci.runtime_config import User, resolve_user

logger = logging.getLogger(__name__)

INSTALLATION_LABEL = "cupola.installation"
SANDBOX_LABEL = "cupola.sandbox"
NO_NETWORK = "none"
KILL_DEADLINE = 20.0
"""Seconds between SIGKILL and the engine's word that the container has ended."""
PROCESS_DEADLINE = 10.0
"""Seconds in which the first process of a container must be seen, or the engine must say that it has ended."""
POLL = 0.02
BY_SIGNAL = 128
"""Added by engines to the number of the signal that ended a container."""


class DockerDriver(Driver):
    """Sandboxes by the engine that listens on `socket`. `installation` names this platform's data (letters and digits)."""

    can_attach = False

    def __init__(self, installation: str, socket: Path) -> None:
        self.isolation = Isolation(filesystem=True, processes=True, network=True, resource_limits=True)
        self._installation = installation
        self._engine = Engine(socket)
        self._images = EngineImages(self._engine, installation)
        self._network = NO_NETWORK
        self._sandboxes: dict[str, DockerSandbox] = {}
        self._sockets = ThreadPoolExecutor(1, "netns-sockets")
        self._removals: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._hurry: asyncio.Future[None] | None = None

    async def open(self) -> None:
        await self._engine.connect()
        try:
            async with self._engine.asked("describe itself") as docker:
                version, info = await docker.version(), await docker.system.info()
            if found := faults(version, info):
                raise SandboxError(f"the Docker engine at {self._engine.socket} will not do: {'; '.join(found)}")
            if not _is_root_beside(info):
                await self._make_network()
        except BaseException:
            await self._engine.close()
            raise

    async def _make_network(self) -> None:
        self._network = f"cupola-{self._installation}"
        # The host, and what else it runs, can connect to a container's address.
        self.isolation = Isolation(filesystem=True, processes=True, network=False, resource_limits=True)
        config = {
            "Name": self._network,
            "Driver": "bridge",
            "CheckDuplicate": True,
            "Internal": True,
            "Options": {"com.docker.network.bridge.enable_icc": "false"},
            "Labels": {INSTALLATION_LABEL: self._installation},
        }
        async with self._engine.asked("make a network", fine=(CONFLICT,)) as docker:
            await docker.networks.create(config)

    async def close(self) -> None:
        for sandbox in self._sandboxes.values():
            # Its removal has failed, or it would not be here.
            await sandbox.close()
        try:
            await self._images.remove_all()
            if self._network != NO_NETWORK:
                async with self._engine.asked("remove a network", fine=(NOT_FOUND,)) as docker:
                    await (await docker.networks.get(self._network)).delete()
        except EngineError as error:
            logger.warning("images or a network are left at the engine; the next start removes them: %s", error)
        await self._engine.close()
        self._sockets.shutdown()

    async def make(self, spec: SandboxSpec, output: Output) -> Sandbox:
        if spec.channel or spec.home is None or spec.files is None:
            raise SandboxError("the docker driver cannot give directories or input to a sandbox that runs already")
        if spec.egress.mode is not EgressMode.NONE:
            raise SandboxError("the docker driver gives sandboxes no way out: set the project's egress policy to none")
        try:
            user = await asyncio.to_thread(_prepare, spec, spec.home, spec.files)
        except OSError as error:
            raise SandboxError(f"its directories could not be made: {error}") from error
        image = await self._images.ensure(spec.layers)
        labels = {INSTALLATION_LABEL: self._installation, SANDBOX_LABEL: spec.name}
        config = container_config(spec, user, image=image, network=self._network, labels=labels)
        sandbox = DockerSandbox(spec.name, self._container_name(spec.name), spec.port)
        self._sandboxes[spec.name] = sandbox
        async with self._engine.asked("create the container") as docker:
            await docker.containers.create(config, name=sandbox.container)
        await self._attach_output(sandbox, output)
        await self._start(sandbox)
        return sandbox

    def _container_name(self, name: str) -> str:
        return f"cupola-{self._installation}-{name}"

    async def _attach_output(self, sandbox: DockerSandbox, output: Output) -> None:
        attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        copying = self._engine.copy_output(sandbox.container, output, attached)
        sandbox.output = asyncio.create_task(copying, name=f"output {sandbox.name}")
        async with self._engine.asked("attach the container's output"):
            await attached

    async def _start(self, sandbox: DockerSandbox) -> None:
        try:
            async with self._engine.asked("start the container"):
                await self._engine.container(sandbox.container).start()
        except EngineError as error:
            raise _explained(error) from error
        sandbox.end = asyncio.create_task(self._watch(sandbox), name=f"end {sandbox.name}")
        try:
            async with asyncio.timeout(PROCESS_DEADLINE):
                while not self._reach(sandbox, await self._details(sandbox)):
                    await asyncio.sleep(POLL)
        except TimeoutError as error:
            raise SandboxError("its process is not on this machine, though the engine seems to be") from error

    async def _details(self, sandbox: DockerSandbox) -> dict[str, Any]:
        async with self._engine.asked("describe the container"):
            return await self._engine.container(sandbox.container).show()

    def _reach(self, sandbox: DockerSandbox, details: Mapping[str, Any]) -> bool:
        """Find out how the agent is reached; False while the engine may not know yet that the container has ended."""
        if self._network != NO_NETWORK:
            sandbox.reach_by_address(details["NetworkSettings"]["Networks"][self._network]["IPAddress"])
            return True
        state = details["State"]
        return not state["Running"] or sandbox.reach_by_namespace(state["Pid"], details["Id"], self._sockets)

    async def _watch(self, sandbox: DockerSandbox) -> None:
        try:
            state = await self._engine.end_of(sandbox.container)
            ended = _exit(state)
        except EngineError as error:
            logger.error("the container of %s is lost: %s", sandbox.name, error)
            ended = Exit(-signal.SIGKILL)
        sandbox.exited.set_result(ended)

    async def freeze(self, name: str) -> None:
        sandbox = self._sandboxes.get(name)
        if sandbox is not None and not sandbox.exited.done():
            await asyncio.shield(sandbox.change(lambda: self._pause(sandbox)))

    def thaw(self, name: str) -> None:
        sandbox = self._sandboxes.get(name)
        if sandbox is not None and not sandbox.exited.done():
            sandbox.change(lambda: self._unpause(sandbox))

    async def _pause(self, sandbox: DockerSandbox) -> None:
        async with self._engine.asked("pause the container", fine=(NOT_FOUND, CONFLICT)):
            await self._engine.container(sandbox.container).pause()
            sandbox.frozen = True

    async def _unpause(self, sandbox: DockerSandbox) -> None:
        if sandbox.frozen and not sandbox.exited.done():
            async with self._engine.asked("unpause the container", fine=(NOT_FOUND, CONFLICT)):
                await self._engine.container(sandbox.container).unpause()
            sandbox.frozen = False

    async def attach(self, name: str, home: Path, files: Path) -> None:
        raise SandboxError("the docker driver cannot give directories to a sandbox that runs already")

    async def remove(self, name: str, grace: float) -> None:
        sandbox = self._sandboxes.get(name)
        hurry = self._hurry_requested()
        if sandbox is not None and sandbox.end is not None and grace > 0 and not hurry.done():
            # An engine that does not do it does not kill either, and that is not passed over.
            with contextlib.suppress(EngineError):
                await self._terminate(sandbox, hurry, grace)
        async with self._removals.setdefault(name, asyncio.Lock()):
            if sandbox is None:
                await self._unpause_unknown(name)
            elif sandbox.end is not None:
                await self._kill(sandbox)
            await self._delete(name)
            if sandbox is not None and self._sandboxes.pop(name, None) is not None:
                await sandbox.close()

    async def _terminate(self, sandbox: DockerSandbox, hurry: asyncio.Future[None], grace: float) -> None:
        if sandbox.exited.done() or not sandbox.may_hear_sigterm():
            return
        await asyncio.wait([sandbox.change(lambda: self._unpause(sandbox))])
        async with self._engine.asked("send SIGTERM", fine=(NOT_FOUND, CONFLICT)):
            await self._engine.container(sandbox.container).kill(signal="SIGTERM")
        either: set[asyncio.Future[Any]] = {sandbox.exited, hurry}
        await asyncio.wait(either, timeout=grace, return_when=asyncio.FIRST_COMPLETED)

    async def _kill(self, sandbox: DockerSandbox) -> None:
        """End the container, and wait until how it ended is known and what it printed is here."""
        if not sandbox.exited.done():
            await asyncio.wait([sandbox.change(lambda: self._unpause(sandbox))])
            async with self._engine.asked("kill the container", fine=(NOT_FOUND, CONFLICT)):
                await self._engine.container(sandbox.container).kill()
            await asyncio.wait([sandbox.exited], timeout=KILL_DEADLINE)
            if not sandbox.exited.done():
                raise SandboxError(f"its container did not end within {KILL_DEADLINE:g} s of being killed")
        await sandbox.last_output()

    async def _unpause_unknown(self, name: str) -> None:
        """A paused container of a dead server cannot be killed by every engine."""
        with contextlib.suppress(EngineError):
            async with self._engine.asked("unpause the container"):
                await self._engine.container(self._container_name(name)).unpause()

    async def _delete(self, name: str) -> None:
        """Returns once the engine does not know the container any more, whoever removes it."""
        container = self._engine.container(self._container_name(name))
        async with self._engine.asked("remove the container", fine=(NOT_FOUND, CONFLICT)):
            await container.delete(force=True, v=True)
        async with self._engine.asked("remove the container", fine=(NOT_FOUND,)):
            while True:
                await container.show()
                await asyncio.sleep(POLL)

    def hurry(self) -> None:
        hurry = self._hurry_requested()
        if not hurry.done():
            hurry.set_result(None)

    def _hurry_requested(self) -> asyncio.Future[None]:
        if self._hurry is None:
            self._hurry = asyncio.get_running_loop().create_future()
        return self._hurry

    async def names(self) -> frozenset[str]:
        filters = json.dumps({"label": [f"{INSTALLATION_LABEL}={self._installation}", SANDBOX_LABEL]})
        async with self._engine.asked("list containers") as docker:
            found = await docker.containers.list(all=True, filters=filters)
        return frozenset(container["Labels"][SANDBOX_LABEL] for container in found)


def _is_root_beside(info: Mapping[str, Any]) -> bool:
    """Whether this process may enter the namespaces of the engine's containers. `reach_by_namespace` makes sure of it."""
    machine = os.uname()
    return os.geteuid() == 0 and (info.get("Name"), info.get("KernelVersion")) == (machine.nodename, machine.release)


def _prepare(spec: SandboxSpec, *directories: Path) -> User:
    user = resolve_user(spec.user, spec.layers)
    for directory in directories:
        if not directory.exists():
            directory.mkdir(parents=True, mode=0o700)
            os.chown(directory, user.uid, user.gid)
    return user


def _exit(state: Mapping[str, Any]) -> Exit:
    """Engines add 128 to the number of a signal; an agent that exits with such a code itself is not told apart."""
    code = int(state["ExitCode"])
    if BY_SIGNAL < code <= BY_SIGNAL + signal.SIGRTMAX:
        code = BY_SIGNAL - code
    return Exit(code, out_of_memory=bool(state["OOMKilled"]) and code == -signal.SIGKILL)


def _explained(error: EngineError) -> SandboxError:
    text = str(error)
    if "executable file" in text or "no such file or directory" in text.lower():
        return SandboxError(f"the image's entry point cannot be executed: {text}")
    return error
