"""A caller's HTTP connection, before anybody knows who it is: what it may send without a body, and how long it may take.

The server underneath keeps a head of any length, for as long as it takes to arrive. It also speaks nothing but HTTP: a request
that asks for a WebSocket reaches the application as any other, with an `Upgrade` in its scope.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cupola.gateway.upgrade import EXTENSION, Upgrade

HEAD_LIMIT = 64 * 1024
"""Bytes of the address and headers of a request, and of what may stand between and after the chunks of a body."""
HEAD_DEADLINE = 30.0
"""Seconds from the connection, or from the first byte of a later request, until a head is complete."""


class BoundedConnection(HttpToolsProtocol):
    """Answers 400 to a head that is too long and closes a connection whose head takes too long."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._without_body = 0
        self._in_request = False
        self._deadline: asyncio.TimerHandle | None = None
        self._upgrade: Upgrade | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)
        if self._upgrade is not None:
            self._upgrade.feed_eof()

    def shutdown(self) -> None:
        super().shutdown()
        if self._upgrade is not None:
            self._upgrade.shutting_down.set()

    def data_received(self, data: bytes) -> None:
        if self._upgrade is not None:
            self._upgrade.feed(data)
            return
        if not self._in_request and self._deadline is None:
            self._expect_head()
        self._without_body += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._upgrade is not None and (early := data[upgrade.args[0] :]):
                self._upgrade.feed(early)
            return
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if self._without_body > HEAD_LIMIT and not self.transport.is_closing():
            self.send_400_response("The head of the request is too long.")

    def on_headers_complete(self) -> None:
        self._forget_deadline()
        self._in_request = True
        self._without_body = 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_LIMIT:
            # The parser takes it for an error in the request.
            raise ValueError("the head of the request is too long")
        if self._asks_for_websocket():
            self._upgrade = Upgrade(self.transport, self.flow.drain, self._detach)
            self.scope["extensions"] = {EXTENSION: self._upgrade}  # type: ignore[dict-item]
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # The parser takes everything after such a request for another protocol.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._without_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_request = False
        self._without_body = 0
        super().on_message_complete()

    def _asks_for_websocket(self) -> bool:
        names = {name for name, _ in self.headers}
        if not self.parser.should_upgrade() or names & {b"content-length", b"transfer-encoding"}:
            return False
        return self.parser.get_method() == b"GET" and self._get_upgrade() == b"websocket"

    def _detach(self) -> None:
        # Nothing is sent by the HTTP server any more, and nothing is missed.
        self.cycle.disconnected = True

    def _expect_head(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEAD_DEADLINE, self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
