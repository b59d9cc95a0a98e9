"""WebSockets to agents: the upgrade is passed on, and after the 101 the bytes of both directions, unchanged.

Neither side's frames are opened. They are only followed towards the caller, who is told when the agent ends without a
close frame: that is put in between two frames.
"""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import Scope, Send

from cupola.domain.session import Session
from cupola.domain.version import Version
from cupola.gateway.body import ClientDisconnected
from cupola.gateway.forward import AgentRequest, Forwarder
from cupola.gateway.frames import Frames, close_frame
from cupola.gateway.upgrade import EXTENSION, Upgrade
from cupola.identity.authentication import SUBPROTOCOL, offered_subprotocols
from cupola.sandbox.http import AgentConnectionError, Headers, Response

_HANDSHAKE = frozenset({b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-extensions"})
_ANSWERED = frozenset({b"sec-websocket-accept", b"sec-websocket-extensions", b"sec-websocket-protocol"})
AGENT_ENDED, SERVER_ENDS = 1011, 1012


def asks_for_websocket(scope: Scope) -> bool:
    """Whether a request may become a WebSocket."""
    versions = [value for name, value in scope["headers"] if name == b"sec-websocket-version"]
    return EXTENSION in scope.get("extensions", {}) and versions == [b"13"]


class Sockets:
    """Opens WebSockets to the sandboxes of sessions."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    async def open(self, scope: Scope, send: Send, session: Session, version: Version, target: bytes) -> None:
        """Pass an upgrade on and serve the socket to its end. It keeps the sandbox awake. An agent's refusal is passed on.

        Raises CupolaError as long as the caller still speaks HTTP.
        """
        caller: Upgrade = scope["extensions"][EXTENSION]
        serving = asyncio.ensure_future(self._serve(scope, send, session, version, target, caller))
        leaving = asyncio.ensure_future(caller.left.wait())
        try:
            await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and not caller.accepted:
                raise ClientDisconnected
            await serving
        finally:
            serving.cancel()
            leaving.cancel()
            await asyncio.gather(serving, leaving, return_exceptions=True)

    async def _serve(
        self, scope: Scope, send: Send, session: Session, version: Version, target: bytes, caller: Upgrade
    ) -> None:
        request = AgentRequest(b"GET", target)
        answered = self._forwarder.answered(scope, session, version, request, _handshake(scope["headers"]))
        async with answered as (response, agent):
            if response.status != 101:
                await self._forwarder.pass_on(scope, send, session, response, agent)
                return
            caller.accept(_accepted(response.headers, scope, session))
            try:
                await _splice(caller, response)
            finally:
                caller.close()


def _handshake(given: Headers) -> list[tuple[bytes, bytes]]:
    sent = [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
    sent += [(name, value) for name, value in given if name in _HANDSHAKE]
    offered = offered_subprotocols(given)
    if SUBPROTOCOL in offered:
        # The token that follows it is for the platform alone.
        at = offered.index(SUBPROTOCOL)
        del offered[at : at + 2]
    if offered:
        sent.append((b"sec-websocket-protocol", ", ".join(offered).encode()))
    return sent


def _accepted(answered: Headers, scope: Scope, session: Session) -> bytes:
    shown = [(name, value) for name, value in answered if name in _ANSWERED]
    chosen = any(name == b"sec-websocket-protocol" for name, _ in shown)
    if not chosen and SUBPROTOCOL in offered_subprotocols(scope["headers"]):
        # A browser gives up when it offered subprotocols and none is chosen.
        shown.append((b"sec-websocket-protocol", SUBPROTOCOL.encode()))
    shown.append((b"x-agent-session-id", session.id.encode()))
    shown.append((b"x-request-id", scope["cupola.request_id"].encode()))
    lines = [b"HTTP/1.1 101 Switching Protocols", b"connection: upgrade", b"upgrade: websocket"]
    lines += [b"%b: %b" % header for header in shown]
    return b"\r\n".join(lines) + b"\r\n\r\n"


async def _splice(caller: Upgrade, agent: Response) -> None:
    """Move bytes both ways until one side is done, or the server is."""
    frames = Frames()

    async def towards_caller() -> None:
        async for data in agent.chunks():
            frames.feed(data)
            await caller.write(data)

    async def towards_agent() -> None:
        while data := await caller.read():
            await agent.write(data)

    work = [asyncio.ensure_future(each) for each in (towards_caller(), towards_agent(), caller.shutting_down.wait())]
    try:
        done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            with contextlib.suppress(AgentConnectionError):
                task.result()
        if caller.open and frames.between and not frames.closed:
            if caller.shutting_down.is_set():
                await caller.write(close_frame(SERVER_ENDS, "The server is shutting down."))
            else:
                await caller.write(close_frame(AGENT_ENDED, "The agent ended the connection without a close frame."))
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
