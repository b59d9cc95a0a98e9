"""Packet filter rules by libnftables, the library of the `nft` program: its language, without a process per change.

A handle keeps one connection to the kernel. A table with `flags owner` belongs to that connection: nobody else can change
it, not even `nft flush ruleset`, and the kernel removes it when the connection ends, whatever ended it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import stat
from pathlib import Path

LIBRARY = "libnftables.so.1"
NETLINK_NETFILTER = 12


class NftablesError(Exception):
    """The kernel or the library refused; the message is theirs."""


class Nftables:
    """Changes the rules of the network namespace in which it was made. For one thread at a time; blocks."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise NftablesError(f"{LIBRARY} is missing (on Debian and Ubuntu: apt install nftables)") from None
        try:
            # The library ends the whole process when it cannot have this socket.
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER).close()
        except OSError as error:
            raise NftablesError(f"the kernel has no nftables: {error.strerror}") from None
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
        started = self._library.nft_ctx_new(ctypes.c_uint32(0))
        if started is None:
            raise NftablesError("libnftables could not be started")
        self._handle: ctypes.c_void_p | None = ctypes.c_void_p(started)
        _keep_from_children()
        self._library.nft_ctx_buffer_error(self._handle)
        self._library.nft_ctx_buffer_output(self._handle)

    def run(self, text: str) -> str:
        """Apply commands in nft's language, all of them or none; returns what they print. Raises NftablesError."""
        if self._handle is None:
            raise NftablesError("the packet filter is closed")
        if self._library.nft_run_cmd_from_buffer(self._handle, text.encode()) != 0:
            said = self._library.nft_ctx_get_error_buffer(self._handle).decode(errors="replace")
            raise NftablesError(said.strip().partition("\n")[0] or "nftables refused without a message")
        printed: bytes = self._library.nft_ctx_get_output_buffer(self._handle)
        return printed.decode(errors="replace")

    def close(self) -> None:
        """Let go; tables that belong to this handle vanish."""
        if self._handle is not None:
            self._library.nft_ctx_free(self._handle)
            self._handle = None


def _keep_from_children() -> None:
    """Mark the library's sockets, which it does not do itself, to be closed in programs that we start."""
    for entry in Path("/proc/self/fd").iterdir():
        descriptor = int(entry.name)
        # Other threads close descriptors meanwhile.
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            found = socket.socket(fileno=descriptor)
            kind = (found.family, found.proto)
            found.detach()
            if kind == (socket.AF_NETLINK, NETLINK_NETFILTER):
                os.set_inheritable(descriptor, False)
