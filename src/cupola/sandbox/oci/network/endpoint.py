"""The platform's endpoint inside a sandbox: what connects there is connected to the server's own port."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from cupola.sandbox.oci.network.streams import BUFFER, StreamServer, closing

MOST_CONNECTIONS = 64


class Endpoint:
    """The endpoint of one sandbox. Each has its own, so whatever comes here is known to come from `sandbox`."""

    def __init__(self, sandbox: str, listening: socket.socket, port: int) -> None:
        self.sandbox = sandbox
        self._port = port
        self._server = StreamServer(listening, self._forward, MOST_CONNECTIONS)

    def open(self) -> None:
        """Begin to accept."""
        self._server.open()

    async def close(self) -> None:
        """Stop listening and break every connection off."""
        await self._server.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port, limit=BUFFER)
        async with closing(to_server):
            pumps = [asyncio.create_task(_pump(*ends)) for ends in ((reader, to_server), (from_server, writer))]
            try:
                await asyncio.gather(*pumps)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(BUFFER):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()
