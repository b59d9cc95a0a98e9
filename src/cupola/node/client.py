"""The server's end: requests to the node, and what it says by itself."""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cupola.domain.errors import CupolaError
from cupola.node.frames import Connection, ConnectionEnded, Frame, Lane
from cupola.node.messages import (
    Answer,
    Cancel,
    Codec,
    Codecs,
    Ended,
    Event,
    Failed,
    Numbered,
    Printed,
    Progress,
    QuickRequest,
    Request,
)
from cupola.sandbox.base import SandboxError

T = TypeVar("T")

LANE_DEADLINE = 30.0
"""Seconds a thread waits until one of the lanes is free."""


class NodeLost(Exception):
    """The node has ended, and with it every sandbox."""


class NodeClient:
    """Requests over the connection, for the event loop. `printed` and `ended` are told what sandboxes do."""

    def __init__(self, connection: Connection, folder: Path) -> None:
        self._connection = connection
        self._codecs = Codecs(folder)
        self._events: Codec[Event] = self._codecs.of(Event)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._progress: dict[int, Callable[[str, str], None]] = {}
        self._lost = False
        self.printed: Callable[[Printed], None] = lambda _: None
        self.ended: Callable[[Ended], None] = lambda _: None

    async def run(self) -> None:
        """Receive until the node has gone; requests then fail with NodeLost."""
        try:
            async for body, descriptors in self._connection.frames():
                self._receive(self._events.decode(body), body, descriptors)
        finally:
            self._lost = True
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(NodeLost("the part of the server that makes sandboxes has ended"))
            self._connection.close()

    def close(self) -> None:
        """Let the node see that the server has gone."""
        self._connection.close()

    def _receive(self, event: Event, body: bytes, descriptors: list[int]) -> None:
        match event:
            case Printed():
                self.printed(event)
            case Ended():
                self.ended(event)
            case Progress(number=number):
                if number in self._progress:
                    self._progress[number](event.step, event.message)
            case Answer(number=number) | Failed(number=number):
                waiting = self._waiting.pop(number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result((body, descriptors))
                    return
        for descriptor in descriptors:
            os.close(descriptor)

    def tell(self, request: Request) -> None:
        """Send a request without waiting for its answer."""
        self._connection.send(self._events.encode(Numbered(next(self._numbers), request)))

    async def ask(self, request: Request, kind: Any, progress: Callable[[str, str], None] | None = None) -> Any:
        """The answer, of type `kind`. Raises SandboxError, CupolaError and NodeLost.

        When the caller is cancelled, the node gives the request up before this ends.
        """
        return (await self.ask_for_descriptors(request, kind, progress))[0]

    async def ask_for_descriptors(
        self, request: Request, kind: Any, progress: Callable[[str, str], None] | None = None
    ) -> tuple[Any, list[int]]:
        """As `ask`, with the descriptors that came with the answer."""
        if self._lost:
            raise NodeLost("the part of the server that makes sandboxes has ended")
        number = next(self._numbers)
        waiting = self._waiting[number] = asyncio.get_running_loop().create_future()
        if progress is not None:
            self._progress[number] = progress
        self._connection.send(self._events.encode(Numbered(number, request)))
        try:
            try:
                body, descriptors = await asyncio.shield(waiting)
            except asyncio.CancelledError:
                self.tell(Cancel(number))
                await asyncio.wait([waiting])
                if not waiting.exception():
                    for descriptor in waiting.result()[1]:
                        os.close(descriptor)
                raise
        finally:
            self._progress.pop(number, None)
        return self._codecs.of(kind).decode(_result(self._events.decode(body))), descriptors


class Lanes:
    """Requests that a thread waits for. The first lane is for what takes well below a millisecond, from the event loop."""

    def __init__(self, lanes: list[Lane], folder: Path) -> None:
        self._codecs = Codecs(folder)
        self._events: Codec[Event] = self._codecs.of(Event)
        self._quick, *others = lanes
        self._quick_lock = threading.Lock()
        self._free: queue.LifoQueue[Lane] = queue.LifoQueue()
        for lane in others:
            self._free.put(lane)

    def ask_quickly(self, request: QuickRequest, kind: Any) -> tuple[Any, list[int]]:
        """The answer and its descriptors. Raises CupolaError, SandboxError and NodeLost."""
        with self._quick_lock:
            return self._ask(self._quick, request, kind)

    def ask(self, request: QuickRequest, kind: Any) -> tuple[Any, list[int]]:
        """As `ask_quickly`, for what may take longer."""
        try:
            lane = self._free.get(timeout=LANE_DEADLINE)
        except queue.Empty:
            text = "Too many operations on files are under way; try again in a moment."
            raise CupolaError("busy", text, status=503, retry_after=1) from None
        try:
            return self._ask(lane, request, kind)
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Give the lanes up. No thread may use one any more."""
        self._quick.close()
        while not self._free.empty():
            self._free.get_nowait().close()

    def _ask(self, lane: Lane, request: QuickRequest, kind: Any) -> tuple[Any, list[int]]:
        try:
            lane.send(self._events.encode(request))
            body, descriptors = lane.receive()
        except ConnectionEnded as error:
            raise NodeLost("the part of the server that makes sandboxes has ended") from error
        return self._codecs.of(kind).decode(_result(self._events.decode(body))), descriptors


def _result(event: Event) -> bytes:
    if isinstance(event, Answer):
        return bytes(event.result)
    if not isinstance(event, Failed):
        raise TypeError(f"no answer: {type(event).__name__}")
    if event.status == 0:
        raise SandboxError(event.message)
    raise CupolaError(event.code, event.message, status=event.status, param=event.param)
