"""The Invocations protocol over HTTP (contract section 5.1): the handler decides what the answer is."""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from cupola_agent import ids, jsons
from cupola_agent.asgi import Answer, json_answer
from cupola_agent.context import InvocationContext, common_fields
from cupola_agent.environment import Environment
from cupola_agent.errors import SOURCE_HEADER
from cupola_agent.handlers import Handler, as_pieces, is_stream
from cupola_agent.http import Request, Response
from cupola_agent.logs import add_log_fields
from cupola_agent.routing import Endpoint, Route

ARGUMENTS = ("request", "context")

_TEXT = "text/plain; charset=utf-8"
_BYTES = "application/octet-stream"

logger = logging.getLogger("cupola_agent")


class Invocations:
    """The routes below `/invocations`; a handler that is None answers that it is not implemented."""

    def __init__(
        self, invoke: Handler | None, get: Handler | None, cancel: Handler | None, environment: Environment
    ) -> None:
        self._invoke = invoke
        self._environment = environment
        self._by_id = {"get_invocation": get, "cancel_invocation": cancel}

    def routes(self) -> tuple[Route, ...]:
        return (
            Route("POST", "/invocations", self._create),
            Route("GET", "/invocations/{invocation_id}", self._endpoint("get_invocation")),
            Route("POST", "/invocations/{invocation_id}/cancel", self._endpoint("cancel_invocation")),
        )

    async def _create(self, request: Request) -> Answer:
        given = request.headers.get("x-agent-invocation-id", "")
        invocation_id = given if ids.is_safe_id(given) else ids.new_uuid()
        session_id = self._session_id(request)
        if self._invoke is None:
            answer = _error(501, "not_implemented", "no invocations handler is registered")
        else:
            answer = await self._run(self._invoke, request, invocation_id, session_id)
        return answer.with_headers(("x-agent-invocation-id", invocation_id), ("x-agent-session-id", session_id))

    def _endpoint(self, name: str) -> Endpoint:
        handler = self._by_id[name]

        async def answered(request: Request) -> Answer:
            invocation_id = request.path_parameters["invocation_id"]
            if handler is None:
                answer = _error(404, "not_found", f"{name} not implemented")
            else:
                answer = await self._run(handler, request, invocation_id, self._session_id(request))
            # An id of any other shape could not be a header.
            safe = ids.is_safe_id(invocation_id)
            return answer.with_headers(("x-agent-invocation-id", invocation_id)) if safe else answer

        return answered

    def _session_id(self, request: Request) -> str:
        asked = request.query.get("agent_session_id", "")
        return asked if ids.is_safe_id(asked) else self._environment.session_id or ids.new_uuid()

    async def _run(self, handler: Handler, request: Request, invocation_id: str, session_id: str) -> Answer:
        add_log_fields(invocation_id=invocation_id, session_id=session_id)
        context = InvocationContext(**common_fields(request, session_id), invocation_id=invocation_id)
        try:
            return await _answer(await handler.call(request=request, context=context))
        except Exception:
            logger.exception("the invocations handler failed")
            return _error(500, "internal_error", "Internal server error", (SOURCE_HEADER, "upstream"))


def _error(status: int, code: str, message: str, source: tuple[str, str] = (SOURCE_HEADER, "user")) -> Answer:
    return json_answer(status, jsons.encode({"error": {"code": code, "message": message}}), source)


async def _answer(result: Any) -> Answer:
    """The answer for what a handler gave. Raises TypeError or ValueError when it cannot be sent."""
    response = _response(result)
    usual_type, body = await _body(response.body)
    headers = _checked_headers(response.headers)
    if response.media_type:
        headers |= _checked_headers({"content-type": response.media_type})
    headers.setdefault("content-type", usual_type)
    return Answer(response.status, tuple(headers.items()), body)


def _response(result: Any) -> Response:
    """The result as a Response; also takes the response objects of Starlette and its kin."""
    if isinstance(result, Response):
        return result
    status = getattr(result, "status", getattr(result, "status_code", None))
    if not isinstance(status, int):
        return Response(result)
    body = getattr(result, "body_iterator", None) or getattr(result, "body", b"")
    return Response(body, int(status), dict(getattr(result, "headers", {})), getattr(result, "media_type", None))


def _checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not (name.isascii() and name.isprintable() and name) or any(sign in value for sign in "\r\n\0"):
            raise ValueError(f"not an HTTP header: {name!r}: {value!r}")
        value.encode("latin-1")
    # The length is counted where the answer is sent.
    return {name.lower(): value for name, value in headers.items() if name.lower() != "content-length"}


async def _body(value: Any) -> tuple[str, bytes | AsyncGenerator[bytes, None]]:
    """The usual media type of a body, and its bytes."""
    if is_stream(value):
        return await _streamed(as_pieces(value))
    if value is None:
        return _BYTES, b""
    if isinstance(value, str):
        return _TEXT, value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return _BYTES, bytes(value)
    return "application/json", jsons.encode(value)


async def _streamed(pieces: AsyncGenerator[Any, None]) -> tuple[str, AsyncGenerator[bytes, None]]:
    """Waits for the first piece: it tells text from bytes, and a failure before it is a clean 500."""
    first = await anext(pieces, b"")

    async def all_bytes() -> AsyncGenerator[bytes, None]:
        async with aclosing(pieces):
            yield _bytes(first)
            async for piece in pieces:
                yield _bytes(piece)

    return (_TEXT if isinstance(first, str) else _BYTES), all_bytes()


def _bytes(piece: Any) -> bytes:
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    raise TypeError(f"an invocations handler streams str or bytes, not {type(piece).__name__}")
