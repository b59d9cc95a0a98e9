"""From a session to its answer: wake the sandbox, send the request, move the bytes of the answer as they come."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from starlette.types import Scope, Send

from cupola.domain.errors import CupolaError
from cupola.domain.session import Session
from cupola.domain.version import Version
from cupola.gateway import headers
from cupola.gateway.timing import Timing
from cupola.sandbox.http import AgentConnectionError, AgentUnreachable, Headers, Response
from cupola.sessions.launcher import RunningAgent
from cupola.sessions.manager import SessionManager

EXIT_NOTICE = 1.0
"""Seconds by which the news that a container has ended may come after its last connection broke."""


async def nothing_to_note(response: Response) -> None:
    """For answers that nobody has to remember."""


@dataclass(frozen=True)
class AgentRequest:
    """What is asked of an agent. `marks` are headers that the platform adds, in both directions."""

    method: bytes
    target: bytes
    body: bytes | AsyncIterator[bytes] = b""
    marks: Headers = ()


def agent_method(scope: Scope) -> bytes:
    """The method by which an agent is asked: a caller's server leaves out the body that HEAD does not want."""
    return b"GET" if scope["method"] == "HEAD" else str(scope["method"]).encode()


class Forwarder:
    """Sends requests to the sandboxes of sessions."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    @contextlib.asynccontextmanager
    async def answered(
        self, scope: Scope, session: Session, version: Version, request: AgentRequest, extra: Headers = ()
    ) -> AsyncIterator[tuple[Response, RunningAgent]]:
        """The head of an agent's answer; the sandbox is kept awake for the length of the block.

        `extra` are headers for the agent alone. Raises CupolaError.
        """
        sent = headers.to_agent(scope["headers"], scope["cupola.request_id"].encode(), scope["cupola.user_headers"])
        sent += [*request.marks, *extra]
        timing: Timing = scope["cupola.server_timing"]
        for last_try in (False, True):
            async with self._manager.running(session, version) as use:
                agent = use.agent
                timing.has(use)
                try:
                    response = await agent.client.request(request.method, request.target, sent, request.body)
                except AgentConnectionError as error:
                    ended = await _has_ended(agent)
                    if ended and isinstance(error, AgentUnreachable) and not last_try:
                        # It died before it heard of this request, which the next sandbox can still serve.
                        continue
                    raise _agent_broke(agent, error, may_retry=request.method == b"GET") from error
                timing.answered(response)
                async with response:
                    yield response, agent
                return

    async def forward(
        self,
        scope: Scope,
        send: Send,
        session: Session,
        version: Version,
        request: AgentRequest,
        note: Callable[[Response], Awaitable[None]] = nothing_to_note,
        goes_on: Callable[[RunningAgent], Awaitable[None]] | None = None,
    ) -> None:
        """Pass a request and its answer on. `note` is told of the answer before the caller is; `goes_on` waits for work that
        the agent does after its answer, and keeps the sandbox awake for it."""
        async with self.answered(scope, session, version, request) as (response, agent):
            try:
                await note(response)
                await self.pass_on(scope, send, session, response, agent, request.marks)
            finally:
                if goes_on is not None:
                    self._manager.keep_awake(session, goes_on)

    async def pass_on(
        self, scope: Scope, send: Send, session: Session, response: Response, agent: RunningAgent, marks: Headers = ()
    ) -> None:
        """Pass an answer on. A stream of events that breaks off ends with an event that says so."""
        timing = str(scope["cupola.server_timing"])
        shown = [*headers.to_caller(response.headers, session.id, timing), *marks]
        await send({"type": "http.response.start", "status": response.status, "headers": shown})
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


def _agent_broke(agent: RunningAgent, error: AgentConnectionError, *, may_retry: bool) -> CupolaError:
    ended = agent.sandbox.exited
    what = f"The container {ended.result()}." if ended.done() else f"{str(error)[:1].upper()}{str(error)[1:]}."
    return CupolaError(
        "agent_connection_lost", f"The agent did not answer the request. {what}", status=502, may_retry=may_retry
    )
