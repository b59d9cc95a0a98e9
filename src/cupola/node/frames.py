"""Messages with descriptors over a stream socket, for the event loop and for threads.

A frame is its length and its number of descriptors, then its body. The kernel hands descriptors over no later than the first
byte of the message they were sent with, and in order.
"""

from __future__ import annotations

import array
import asyncio
import collections
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence

from cupola.node.messages import MESSAGE_LIMIT

_HEAD = struct.Struct("!IB")
_MOST_DESCRIPTORS = 8
_READ_SIZE = 256 * 1024
_ANCILLARY = socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)

Frame = tuple[bytes, list[int]]


class ConnectionEnded(Exception):
    """The other side has gone."""


class _Parser:
    """Puts frames together from what was received. Owns the descriptors until they are handed out."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._descriptors: collections.deque[int] = collections.deque()

    def receive(self, connection: socket.socket) -> None:
        """One call of recvmsg(2). Raises BlockingIOError and ConnectionEnded."""
        try:
            data, ancillary, flags, _ = connection.recvmsg(_READ_SIZE, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as error:
            raise ConnectionEnded from error
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(content[: len(content) - len(content) % received.itemsize])
                self._descriptors.extend(received)
        if not data or flags & socket.MSG_CTRUNC:
            raise ConnectionEnded
        self._data += data

    def next(self) -> Frame | None:
        """The next whole frame, if there is one. Raises ConnectionEnded for what no frame begins with."""
        if len(self._data) < _HEAD.size:
            return None
        size, count = _HEAD.unpack_from(self._data)
        if size > MESSAGE_LIMIT or count > _MOST_DESCRIPTORS:
            raise ConnectionEnded
        end = _HEAD.size + size
        if len(self._data) < end:
            return None
        if len(self._descriptors) < count:
            raise ConnectionEnded
        body = bytes(memoryview(self._data)[_HEAD.size : end])
        del self._data[:end]
        return body, [self._descriptors.popleft() for _ in range(count)]

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())


def _pack(body: bytes, descriptors: Sequence[int]) -> bytes:
    if len(body) > MESSAGE_LIMIT:
        raise ValueError(f"a message of {len(body)} bytes is too large")
    return _HEAD.pack(len(body), len(descriptors)) + body


class Connection:
    """An end of the connection for the event loop; it owns the socket."""

    def __init__(self, opened: socket.socket) -> None:
        opened.setblocking(False)
        self._socket = opened
        self._parser = _Parser()
        self._queue: collections.deque[tuple[memoryview, list[int]]] = collections.deque()
        self._open = True
        self._readable = asyncio.Event()
        self.unsent = 0
        """Bytes that wait for the other side to read."""

    async def frames(self) -> AsyncIterator[Frame]:
        """What comes, until the other side has gone. The descriptors are the receiver's."""
        if self._open:
            asyncio.get_running_loop().add_reader(self._socket, self._readable.set)
        while self._open:
            await self._readable.wait()
            self._readable.clear()
            if not self._open:
                return
            try:
                self._parser.receive(self._socket)
                while (frame := self._parser.next()) is not None:
                    yield frame
            except BlockingIOError:
                continue
            except ConnectionEnded:
                return

    def send(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message as soon as the other side reads, or never when it has gone. The descriptors stay the caller's."""
        if not self._open:
            return
        data = memoryview(_pack(body, descriptors))
        if not self._queue:
            try:
                data = data[_send(self._socket, data, descriptors) :]
                descriptors = ()
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        if data:
            self._queue.append((data, [os.dup(descriptor) for descriptor in descriptors]))
            self.unsent += len(data)
            asyncio.get_running_loop().add_writer(self._socket, self._flush)

    def _flush(self) -> None:
        try:
            while self._queue:
                data, descriptors = self._queue[0]
                sent = _send(self._socket, data, descriptors)
                self.unsent -= sent
                for descriptor in descriptors:
                    os.close(descriptor)
                if sent < len(data):
                    self._queue[0] = (data[sent:], [])
                    return
                self._queue.popleft()
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        asyncio.get_running_loop().remove_writer(self._socket)

    def close(self) -> None:
        """Let the other side see that this one has gone."""
        if not self._open:
            return
        self._open = False
        self._readable.set()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self._parser.close()
        while self._queue:
            for descriptor in self._queue.popleft()[1]:
                os.close(descriptor)


class Lane:
    """An end of a connection for threads, one at a time; it owns the socket."""

    def __init__(self, opened: socket.socket) -> None:
        opened.setblocking(True)
        self._socket = opened
        self._parser = _Parser()

    def send(self, body: bytes, descriptors: Sequence[int] = ()) -> None:
        """Send a message; the descriptors stay the caller's. Raises ConnectionEnded."""
        data = memoryview(_pack(body, descriptors))
        try:
            data = data[_send(self._socket, data, descriptors) :]
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionEnded from error

    def receive(self) -> Frame:
        """The next message; the descriptors are the caller's. Raises ConnectionEnded."""
        while (frame := self._parser.next()) is None:
            try:
                self._parser.receive(self._socket)
            except OSError as error:
                raise ConnectionEnded from error
        return frame

    def close(self) -> None:
        """Let the other side see that this one has gone; a thread that waits in `receive` sees it as well."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._parser.close()


def _send(connection: socket.socket, data: memoryview, descriptors: Sequence[int]) -> int:
    if not descriptors:
        return connection.send(data)
    rights = array.array("i", descriptors)
    return connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
