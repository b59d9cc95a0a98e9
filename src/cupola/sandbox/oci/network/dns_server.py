"""The name service inside a sandbox, by UDP and TCP: takes messages in, within bounds, and sends the resolver's answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from cupola.sandbox.oci.network.allowance import Allowance
from cupola.sandbox.oci.network.dns_message import MOST_BYTES
from cupola.sandbox.oci.network.resolver import Resolver
from cupola.sandbox.oci.network.streams import StreamServer

MOST_CONNECTIONS = 8
MOST_QUESTIONS = 64
"""That wait for their answers."""
BURST = 200
QUESTIONS_PER_SECOND = 100
PATIENCE = 10.0
"""Seconds after which a connection that asks nothing is closed."""


class DnsServer:
    """Serves a resolver on a UDP socket and on a listening TCP socket, both of the sandbox."""

    def __init__(self, resolver: Resolver, udp: socket.socket, tcp: socket.socket) -> None:
        self._resolver = resolver
        self._udp = udp
        self._streams = StreamServer(tcp, self._serve_stream, MOST_CONNECTIONS)
        self._questions: set[asyncio.Task[None]] = set()
        self._allowance = Allowance(BURST, QUESTIONS_PER_SECOND)
        self._pause: asyncio.TimerHandle | None = None

    def open(self) -> None:
        """Begin to answer."""
        self._listen()
        self._streams.open()

    async def close(self) -> None:
        """Stop; questions under way get no answer."""
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._udp)
        for task in self._questions:
            task.cancel()
        await asyncio.gather(*self._questions, return_exceptions=True)
        self._udp.close()
        await self._streams.close()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._udp, self._receive)

    def _receive(self) -> None:
        try:
            data, source = self._udp.recvfrom(MOST_BYTES + 1)
        except OSError:
            return
        self._allowance.take()
        if len(self._questions) < MOST_QUESTIONS:
            task = asyncio.create_task(self._answer(data, source), name="question of a sandbox")
            self._questions.add(task)
            task.add_done_callback(self._questions.discard)
        pause = self._allowance.missing()
        if pause > 0:
            # What comes meanwhile waits in the kernel or is lost there, and costs the server nothing.
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._udp)
            self._pause = loop.call_later(pause, self._listen)

    async def _answer(self, data: bytes, source: tuple[str, int]) -> None:
        answer = await self._resolver.answer(data, udp=True)
        if answer is not None:
            # A sandbox that does not read its answers loses them.
            with contextlib.suppress(OSError):
                self._udp.sendto(answer, source)

    async def _serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(PATIENCE):
                size = int.from_bytes(await reader.readexactly(2), "big")
                if size > MOST_BYTES:
                    return
                data = await reader.readexactly(size)
            await asyncio.sleep(self._allowance.missing())
            self._allowance.take()
            answer = await self._resolver.answer(data, udp=False)
            if answer is None:
                return
            async with asyncio.timeout(PATIENCE):
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await writer.drain()
