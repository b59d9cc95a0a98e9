"""Requests to agents: find the agent, version and session, wake the sandbox, move the bytes.

A body of the Responses protocol is read whole because routing depends on it; it is handed on byte for byte. The body of an
invocation is streamed through. Answers are streamed in both.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from urllib.parse import parse_qs

import msgspec
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.ids import new_response_id
from cupola.domain.session import Session, check_session_id
from cupola.domain.version import Version
from cupola.gateway import headers
from cupola.gateway.background import until_complete
from cupola.gateway.timing import Timing
from cupola.identity.call_ids import CallIds
from cupola.identity.delegation import IDENTITY_HEADER, effective_caller
from cupola.sandbox.http import AgentConnectionError, AgentUnreachable, Response
from cupola.sessions.launcher import RunningAgent
from cupola.sessions.manager import SessionManager
from cupola.storage import agents
from cupola.storage.database import Database

EXIT_NOTICE = 1.0
"""Seconds by which the news that a container has ended may come after its last connection broke."""
DRAIN_LIMIT = 256 * 1024 * 1024
"""Bytes of a too large body that are read and dropped, so that the caller gets to see the refusal."""


class ClientDisconnected(Exception):
    """The caller left before its request was complete; nobody is there to answer."""


class _AgentReference(msgspec.Struct):
    name: str
    type: str = ""
    version: str | int | None = None


class _ResponsesBody(msgspec.Struct):
    agent: _AgentReference | None = None
    agent_reference: _AgentReference | None = None
    agent_session_id: str | None = None
    model: str | None = None
    background: bool | None = None
    previous_response_id: str | None = None


_decode_body = msgspec.json.Decoder(_ResponsesBody).decode


@dataclass(frozen=True)
class _Target:
    agent: str
    number: int | None
    session_id: str | None
    background_id: str | None = None
    """The id that a response gets which goes on after its request."""


class Gateway:
    """The data-plane routes of a project."""

    def __init__(self, database: Database, manager: SessionManager, call_ids: CallIds, max_body: int) -> None:
        self._database = database
        self._manager = manager
        self._call_ids = call_ids
        self._max_body = max_body

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        agent = "/agents/{name}/endpoint/protocols"
        responses = (
            "/openai/responses",
            "/openai/v1/responses",
            f"{agent}/openai/responses",
            f"{agent}/openai/v1/responses",
        )
        return [
            *(Route(path, _Endpoint(self.responses), methods=["POST"]) for path in responses),
            Route(f"{agent}/invocations", _Endpoint(self.invocations), methods=["POST"]),
        ]

    async def responses(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST …/responses."""
        scope["cupola.server_timing"] = Timing()
        body = await self._read_body(receive)
        target = _responses_target(body, scope["path_params"].get("name"))
        session, version = await self._session(scope, target, "responses")
        query = scope["query_string"]
        path = b"/responses" + (b"?" + query if query else b"")
        forward = self._forward(scope, send, session, version, path, body, target.background_id)
        await _while_connected(receive, None, forward)

    async def invocations(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST …/protocols/invocations: any body of any type."""
        scope["cupola.server_timing"] = Timing()
        self._check_length(scope)
        query = parse_qs(scope["query_string"].decode("latin-1"))
        given = query.get("agent_session_id")
        target = _Target(scope["path_params"]["name"], None, check_session_id(given[0]) if given else None)
        session, version = await self._session(scope, target, "invocations")
        read = asyncio.Event()
        body = self._stream_body(receive, read)
        path = b"/invocations?agent_session_id=" + session.id.encode()
        await _while_connected(receive, read, self._forward(scope, send, session, version, path, body))

    async def _session(self, scope: Scope, target: _Target, protocol: str) -> tuple[Session, Version]:
        project = scope["path_params"]["project"]
        agent = await self._database.read(lambda connection: agents.require_agent(connection, project, target.agent))
        caller = effective_caller(scope["cupola.caller"], Headers(scope=scope).getlist(IDENTITY_HEADER))
        session, version = await self._manager.resolve(agent, target.session_id, target.number, caller)
        scope["cupola.session_id"] = session.id
        scope["cupola.user_headers"] = self._call_ids.headers(project, caller, session.guid)
        scope["cupola.server_timing"].resolved()
        if not version.definition.speaks(protocol):
            spoken = ", ".join(entry.protocol for entry in version.definition.protocols)
            raise CupolaError(
                "ProtocolVersionNotSupported",
                f"Version {version.name} does not declare the protocol {protocol}, only {spoken}; add it to "
                "protocol_versions in a new version.",
            )
        return session, version

    async def _forward(
        self,
        scope: Scope,
        send: Send,
        session: Session,
        version: Version,
        path: bytes,
        body: bytes | AsyncIterator[bytes],
        background_id: str | None = None,
    ) -> None:
        sent = headers.to_agent(scope["headers"], scope["cupola.request_id"].encode(), scope["cupola.user_headers"])
        if background_id is not None:
            sent.append((b"x-agent-response-id", background_id.encode()))
        timing: Timing = scope["cupola.server_timing"]
        for last_try in (False, True):
            async with self._manager.running(session, version) as use:
                agent = use.agent
                timing.has(use)
                try:
                    response = await agent.client.request(b"POST", path, sent, body)
                except AgentConnectionError as error:
                    ended = await _has_ended(agent)
                    if ended and isinstance(error, AgentUnreachable) and not last_try:
                        # It died before it heard of this request, which the next sandbox can still serve.
                        continue
                    raise _agent_broke(agent, error) from error
                timing.answered(response)
                try:
                    async with response:
                        await _pass_on(response, send, session.id, timing, agent)
                finally:
                    if background_id is not None:
                        self._manager.keep_awake(session, until_complete(background_id))
                return

    def _check_length(self, scope: Scope) -> None:
        length = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._max_body:
            raise self._too_large()

    async def _read_body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in _received(receive):
            size += len(part)
            if size <= self._max_body:
                parts.append(part)
            elif size > DRAIN_LIMIT:
                break
        if size > self._max_body:
            raise self._too_large()
        return b"".join(parts)

    async def _stream_body(self, receive: Receive, read: asyncio.Event) -> AsyncIterator[bytes]:
        size = 0
        try:
            async for part in _received(receive):
                size += len(part)
                if size > self._max_body:
                    raise self._too_large()
                yield part
        finally:
            # Also when an agent has answered before it read everything: from now on somebody else watches for the caller.
            read.set()

    def _too_large(self) -> CupolaError:
        return CupolaError(
            "payload_too_large",
            f"The body is larger than {self._max_body} bytes, the setting max_request_body of this server.",
            status=413,
        )


class _Endpoint:
    """Lets a route call a method as an ASGI application."""

    def __init__(self, application: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._application(scope, receive, send)
        except ClientDisconnected:
            # Nobody is left to answer; what the request held has been given back on the way here.
            return


async def _received(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _while_connected(
    receive: Receive, body_read: asyncio.Event | None, work: Coroutine[None, None, None]
) -> None:
    """Do the work, and give it up when the caller leaves; `body_read` is set once nobody else calls `receive`."""

    async def watch() -> None:
        if body_read is not None:
            await body_read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnected
        working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


def _responses_target(body: bytes, name_in_path: str | None) -> _Target:
    try:
        parsed = _decode_body(body)
    except msgspec.ValidationError as error:
        raise CupolaError("invalid_request_error", f"The body is not as expected: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CupolaError("invalid_request_error", f"The body is not JSON: {error}.") from error
    reference = parsed.agent_reference or parsed.agent
    key = "agent_reference" if parsed.agent_reference else "agent"
    if reference is not None and reference.type != "agent_reference":
        raise CupolaError("invalid_request_error", f'{key}.type: expected "agent_reference".', param=f"{key}.type")
    name = name_in_path or (reference.name if reference else None)
    if name is None:
        raise CupolaError(
            "invalid_request_error",
            'The body names no agent; add "agent_reference": {"type": "agent_reference", "name": "<agent>"}, or use the '
            "agent's own endpoint.",
            param="agent_reference",
        )
    if reference is not None and reference.name != name:
        raise CupolaError(
            "invalid_request_error", f"{key}.name: the path is of agent {name[:63]}.", param=f"{key}.name"
        )
    session_id = None if parsed.agent_session_id is None else check_session_id(parsed.agent_session_id)
    background_id = new_response_id(parsed.previous_response_id) if parsed.background else None
    return _Target(name, _number(reference, key), session_id, background_id)


def _number(reference: _AgentReference | None, key: str) -> int | None:
    if reference is None or reference.version in (None, "", "latest", "@latest"):
        return None
    text = str(reference.version)
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise not_found(f"Version {text[:16]} of agent {reference.name[:63]}")
    return int(text)


async def _pass_on(response: Response, send: Send, session_id: str, timing: Timing, agent: RunningAgent) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": response.status,
            "headers": headers.to_caller(response.headers, session_id, str(timing)),
        }
    )
    content_type = response.header(b"content-type") or b""
    try:
        async for chunk in response.chunks():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except AgentConnectionError as error:
        await _has_ended(agent)
        if not content_type.startswith(b"text/event-stream"):
            raise
        # An official client takes the end of a stream for success unless an event says otherwise.
        event = {
            "type": "error",
            "code": "agent_stopped",
            "message": f"The agent stopped before its answer was complete: {error}.",
            "param": None,
        }
        frame = f"event: error\ndata: {json.dumps(event)}\n\n".encode()
        await send({"type": "http.response.body", "body": b"\n\n" + frame, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _has_ended(agent: RunningAgent) -> bool:
    """Whether a broken connection was the container's end. Callers are told of the break only when this is known, so that
    their next request does not meet what is left of a dying container."""
    await asyncio.wait([agent.sandbox.exited], timeout=EXIT_NOTICE)
    return agent.sandbox.exited.done()


def _agent_broke(agent: RunningAgent, error: AgentConnectionError) -> CupolaError:
    ended = agent.sandbox.exited
    what = f"The container {ended.result()}." if ended.done() else f"{str(error)[:1].upper()}{str(error)[1:]}."
    return CupolaError(
        "agent_connection_lost", f"The agent did not answer the request. {what}", status=502, may_retry=False
    )
