"""The node's end: does what the server asks, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cupola.images.model import Images
from cupola.images.reference import parse_reference
from cupola.node import messages as wire
from cupola.node.answers import describe_failure, encode_answer
from cupola.node.frames import Connection, Lane
from cupola.node.quick import QuickService, serve_lane
from cupola.sandbox.base import Driver, Output, Sandbox, Stream
from cupola.sandbox.oci.pipes import HeldPipes
from cupola.sessions.volumes import LocalVolumes

logger = logging.getLogger(__name__)

MOST_UNSENT = 4 * 1024 * 1024
"""Bytes that wait for the server, above which what sandboxes print beside their pipes is dropped."""

Result = tuple[Any, list[int]]
"""What a request is answered with. The descriptors are closed when they were sent."""


class NodeService:
    """Serves one server. `volumes` are by kind: `volumes` those of sessions, `trials` those of smoke starts."""

    def __init__(
        self,
        connection: Connection,
        lanes: list[Lane],
        folder: Path,
        driver: Driver,
        images: Images,
        volumes: Mapping[wire.VolumeKind, LocalVolumes],
    ) -> None:
        self._connection = connection
        self._codec: wire.Codec[wire.Numbered] = wire.Codec(folder, wire.Numbered)
        self._lanes = lanes
        self._folder = folder
        self._driver = driver
        self._sandboxes: dict[str, Sandbox] = {}
        self._quick = QuickService(driver, self._sandboxes, volumes)
        self._images = images
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serve until the server has gone, then give up what it asked for and remove every sandbox."""
        threads = [threading.Thread(target=serve_lane, args=(lane, self._folder, self._quick)) for lane in self._lanes]
        for thread in threads:
            thread.start()
        try:
            async with asyncio.TaskGroup() as group:
                async for body, descriptors in self._connection.frames():
                    for descriptor in descriptors:
                        os.close(descriptor)
                    self._begin(self._codec.decode(body), group)
                for task in list(self._tasks.values()):
                    task.cancel()
        except* msgspec.MsgspecError:
            logger.exception("the server said something that is not understood; all sandboxes are stopped")
        finally:
            self._connection.close()
            for lane in self._lanes:
                lane.close()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            self._quick.close()
            for name in await self._driver.names():
                await self._driver.stop(name, 0)

    def _begin(self, numbered: wire.Numbered, group: asyncio.TaskGroup) -> None:
        request, number = numbered.request, numbered.number
        if isinstance(request, wire.Cancel):
            if request.request in self._tasks:
                self._tasks[request.request].cancel()
            return
        task = group.create_task(self._serve(number, request), name=f"node request {type(request).__name__}")
        self._tasks[number] = task
        task.add_done_callback(lambda task: self._end(number, task))

    def _end(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        # Here, because one that is cancelled at once never begins.
        if task.cancelled():
            self._send(wire.Failed(number, 499, "cancelled", "The request was cancelled."))

    async def _serve(self, number: int, request: wire.Request) -> None:
        descriptors: list[int] = []
        try:
            result, descriptors = await self._perform(number, request)
            self._connection.send(encode_answer(self._codec, number, result), descriptors)
        except Exception as error:
            self._send(describe_failure(number, error))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _perform(self, number: int, request: wire.Request) -> Result:
        driver = self._driver
        match request:
            case wire.Open():
                return wire.Opened(driver.isolation, driver.can_attach, driver.can_freeze, driver.no_egress), []
            case wire.Start(spec=spec):
                held = HeldPipes(self._output(spec.name))
                try:
                    sandbox = await driver.start(spec, held)
                    thaw = sandbox.open_thaw_file()
                except BaseException:
                    held.close()
                    raise
                self._sandboxes[spec.name] = sandbox
                sandbox.exited.add_done_callback(lambda ended: self._send(wire.Ended(spec.name, ended.result())))
                channel, sandbox.channel = sandbox.channel, None
                descriptors = [
                    *held.read_ends.values(),
                    *([] if thaw is None else [thaw.descriptor]),
                    *([] if channel is None else [channel.detach()]),
                ]
                order = b"" if thaw is None else thaw.order
                return wire.Started(sandbox.address, tuple(held.read_ends), order), descriptors
            case wire.Stop(sandbox=name, grace=grace):
                await driver.stop(name, grace)
                self._sandboxes.pop(name, None)
            case wire.Freeze(sandbox=name):
                await driver.freeze(name)
                return None, self._quick.open_socket(name)
            case wire.Attach(sandbox=name, home=home, files=files):
                await driver.attach(name, home, files)
            case wire.ListSandboxes():
                return tuple(await driver.names()), []
            case wire.Hurry():
                driver.hurry()
            case wire.Resolve(reference=reference):
                return await self._images.resolve(parse_reference(reference)), []
            case wire.Pull(reference=reference, digest=digest):

                def report(step: str, message: str) -> None:
                    self._send(wire.Progress(number, step, message))

                return await self._images.pull(parse_reference(reference), digest, report), []
            case wire.Load(digest=digest):
                return await self._images.load(digest), []
            case wire.Prune(keep=keep):
                await self._images.prune(keep)
        return None, []

    def _output(self, name: str) -> Output:
        def printed(stream: Stream, data: bytes) -> None:
            if self._connection.unsent < MOST_UNSENT:
                self._send(wire.Printed(name, stream, data))

        return printed

    def _send(self, event: wire.Event) -> None:
        self._connection.send(self._codec.encode(event))
