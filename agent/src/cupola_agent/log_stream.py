"""Where log lines go: written at once while their reader keeps up, and never at the price of the event loop.

A container's stderr is often a pipe. When nobody empties it, a write would hold up every request. So a line goes out
directly only when the kernel says there is room; what does not fit waits in a bounded buffer that a thread empties.
"""

import os
import select
import sys
import threading
import time

MAX_WAITING = 4 * 1024 * 1024
"""Bytes that wait for a slow reader at most; later ones are lost, and the log says how many."""
_SLICE = 4096
"""What a pipe takes without blocking whenever it reports room (PIPE_BUF)."""


class LogStream:
    """Writes text to a file descriptor. May be used by several threads."""

    def __init__(self, descriptor: int, *, max_waiting: int = MAX_WAITING) -> None:
        self._descriptor = descriptor
        self._max_waiting = max_waiting
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)
        self._lock = threading.Lock()
        self._waiting = bytearray()
        self._lost = 0
        self._drainer: threading.Thread | None = None

    def write(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        with self._lock:
            if self._drainer is None:
                data = data[self._write_what_fits(data) :]
                if data:
                    self._drainer = threading.Thread(target=self._drain, name="cupola-agent-log", daemon=True)
                    self._drainer.start()
            if data and len(self._waiting) + len(data) <= self._max_waiting:
                self._waiting += data
            elif data:
                self._lost += data.count(b"\n") or 1

    def flush(self, seconds: float = 1.0) -> None:
        """Gives what waits this long to go out."""
        drainer = self._drainer
        if drainer is not None and drainer is not threading.current_thread():
            drainer.join(seconds)

    def _write_what_fits(self, data: bytes) -> int:
        sent = 0
        while sent < len(data):
            events = self._poll.poll(0)
            if not events or not events[0][1] & select.POLLOUT:
                # With the reader gone nobody will miss the lines.
                return len(data) if events else sent
            try:
                sent += os.write(self._descriptor, data[sent : sent + _SLICE])
            except OSError:
                return len(data)
        return sent

    def _drain(self) -> None:
        while True:
            with self._lock:
                if self._lost and len(self._waiting) < self._max_waiting // 2:
                    self._waiting += f"{self._lost} lines of the log were lost: nobody read it\n".encode()
                    self._lost = 0
                if not self._waiting:
                    self._drainer = None
                    return
                data = bytes(self._waiting[: 64 * 1024])
                del self._waiting[: len(data)]
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                time.sleep(0.01)  # somebody else made the descriptor non-blocking
                with self._lock:
                    self._waiting[:0] = data
            except OSError:
                with self._lock:
                    self._waiting.clear()


class _TextStream:
    """Standard error where it is not a file, as in a test."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def standard_error() -> LogStream | _TextStream:
    try:
        return LogStream(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):
        return _TextStream()
