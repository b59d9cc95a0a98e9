"""Where the frames of a WebSocket begin and end (RFC 6455, section 5.2), without a look at what is in them."""

from __future__ import annotations

import struct

_CLOSE = 0x8


class Frames:
    """Follows the bytes of one direction."""

    def __init__(self) -> None:
        self.closed = False
        """Whether a close frame has begun: nothing may follow it."""
        self._head = bytearray()
        self._payload = 0

    @property
    def between(self) -> bool:
        """Whether a frame of somebody else's may be put in here."""
        return not self._head and not self._payload

    def feed(self, data: bytes) -> None:
        """Bytes that were passed on."""
        at = 0
        while at < len(data):
            if self._payload:
                skipped = min(self._payload, len(data) - at)
                self._payload -= skipped
                at += skipped
                continue
            missing = self._head_size() - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) == self._head_size():
                self._begin()

    def _head_size(self) -> int:
        if len(self._head) < 2:
            return 2
        length = self._head[1] & 0x7F
        mask = 4 if self._head[1] & 0x80 else 0
        return 2 + (8 if length == 127 else 2 if length == 126 else 0) + mask

    def _begin(self) -> None:
        length = self._head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack_from(">H", self._head, 2)
        elif length == 127:
            (length,) = struct.unpack_from(">Q", self._head, 2)
        self.closed = self.closed or self._head[0] & 0xF == _CLOSE
        self._payload = length
        self._head.clear()


def close_frame(code: int, reason: str) -> bytes:
    """A server's close frame; the reason may have at most 123 bytes."""
    payload = struct.pack(">H", code) + reason.encode()
    return bytes((0x80 | _CLOSE, len(payload))) + payload
