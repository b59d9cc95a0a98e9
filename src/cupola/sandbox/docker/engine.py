"""The connection to a Docker engine: every call has a deadline, and what goes wrong is said in words that help."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer

from cupola.sandbox.base import Output, SandboxError

CALL_DEADLINE = 30.0
IMPORT_DEADLINE = 600.0
RECONNECT_DEADLINE = 15.0
"""Seconds that an engine may be away, as for its own restart, before its containers are taken for lost."""
RECONNECT_PAUSE = 0.25

_UNREACHABLE = 900
"""The status that aiodocker makes up when it cannot connect."""


class EngineError(SandboxError):
    """The engine did not do what it was asked: `status` is that of its answer, 0 when there was none."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Engine:
    """The engine that listens on a Unix socket. `connect` comes first, `close` last."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def connect(self) -> None:
        # Two connections are open for each container as long as it runs.
        self._connector = aiohttp.UnixConnector(str(self.socket), limit=0)
        self._docker = aiodocker.Docker("unix://localhost", connector=self._connector)

    async def close(self) -> None:
        await self._docker.close()
        await self._connector.close()

    @contextlib.asynccontextmanager
    async def asked(
        self, what: str, *, fine: tuple[int, ...] = (), deadline: float = CALL_DEADLINE
    ) -> AsyncIterator[aiodocker.Docker]:
        """The client, for calls that together may take `deadline` seconds. Raises EngineError that names `what`.

        An answer with a status in `fine` ends the block without an error.
        """
        try:
            async with asyncio.timeout(deadline):
                yield self._docker
        except TimeoutError as error:
            raise EngineError(f"the Docker engine took longer than {deadline:g} s to {what}") from error
        except aiodocker.DockerError as error:
            if error.status in fine:
                return
            if error.status == _UNREACHABLE:
                raise self._unreachable(error) from error
            raise EngineError(f"the Docker engine could not {what}: {error.message.strip()}", error.status) from error
        except (aiohttp.ClientError, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> EngineError:
        return EngineError(f"the Docker engine at {self.socket} cannot be reached: {error}")

    def container(self, name: str) -> DockerContainer:
        return self._docker.containers.container(name)

    async def import_image(self, repository: str, tag: str, pieces: Iterator[bytes]) -> None:
        """Make an image of one tar of a root file system. Raises EngineError."""
        reading: list[OSError] = []

        async def body() -> AsyncIterator[bytes]:
            try:
                while piece := await asyncio.to_thread(next, pieces, b""):
                    yield piece
            except OSError as error:
                reading.append(error)
                raise

        parameters = {"fromSrc": "-", "repo": repository, "tag": tag}
        try:
            async with self.asked("import the image", deadline=IMPORT_DEADLINE) as docker:
                address = f"{docker.docker_host}/{docker.api_version}/images/create"
                async with docker.session.post(address, params=parameters, data=body()) as answer:
                    text = await answer.text()
        except EngineError as error:
            if reading:
                raise EngineError(f"a layer of the image could not be read: {reading[0]}") from error
            raise
        # A failure after the head of the answer is one of its lines.
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
        failures = [line.get("error") or line.get("message") for line in lines if "error" in line or "message" in line]
        if answer.status != 200 or failures:
            raise EngineError(f"the Docker engine could not import the image: {'; '.join(map(str, failures))}")

    async def copy_output(self, name: str, output: Output, attached: asyncio.Future[None]) -> None:
        """Hand on what a container prints, to its end; `attached` is set once nothing can be missed any more."""
        try:
            async with self.container(name).attach(stdout=True, stderr=True) as stream:
                attached.set_result(None)
                while (message := await stream.read_out()) is not None:
                    output("stdout" if message.stream == 1 else "stderr", message.data)
        except (aiodocker.DockerError, aiohttp.ClientError, OSError) as error:
            if not attached.done():
                attached.set_exception(EngineError(f"the container's output could not be attached: {error}"))

    async def end_of(self, name: str) -> Mapping[str, Any]:
        """Wait until a container has ended, however long; returns its `State`. Raises EngineError when it is lost."""
        while True:
            try:
                await self.container(name).wait()
            except (aiodocker.DockerError, aiohttp.ClientError, OSError):
                await asyncio.sleep(RECONNECT_PAUSE)
            state: Mapping[str, Any] = (await self._when_back(self.container(name).show))["State"]
            if not state["Running"]:
                return state

    async def _when_back(self, call: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """The result of a call, tried again while the engine is away."""
        loop = asyncio.get_running_loop()
        end = loop.time() + RECONNECT_DEADLINE
        while True:
            try:
                async with self.asked("describe a container"):
                    return await call()
            except EngineError as error:
                if error.status or loop.time() > end:
                    raise
            await asyncio.sleep(RECONNECT_PAUSE)
