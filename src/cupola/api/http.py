"""What every route has in common: request ids, the caller, JSON in and out, errors in one shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cupola.domain.errors import CupolaError
from cupola.domain.ids import new_guid, new_request_id
from cupola.domain.principal import Principal, SandboxPrincipal
from cupola.storage.paging import Page, PageRequest

logger = logging.getLogger(__name__)

JSON_LIMIT = 2 * 1024 * 1024
"""Bytes of the largest body of a control-plane request."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")

Item = TypeVar("Item")


class RequestIds:
    """Gives every request an id, the caller's own if it sent a sane one, and puts it on the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        scope["cupola.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Errors:
    """Turns a CupolaError into its answer, and anything else into an opaque one whose id is in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except ClientDisconnect:
            # Nobody is left to answer.
            return
        except Exception as error:
            if started:
                # The status is out: all that is left is to break the connection off, which the server does.
                raise
            await error_response(scope, error)(scope, receive, send)


def error_response(scope: Scope, error: Exception) -> JSONResponse:
    """The answer to a request that failed; logs what the caller may not see."""
    if not isinstance(error, CupolaError):
        reference = new_guid()
        logger.exception("%s %s failed, reference %s", scope["method"], scope["path"], reference, exc_info=error)
        error = CupolaError(
            "server_error",
            f"An unexpected error happened; the server's log has it under {reference}.",
            status=500,
        )
    headers: dict[str, str] = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if not error.may_retry:
        headers["x-should-retry"] = "false"
    if error.etag is not None:
        headers["etag"] = error.etag
    session_id = scope.get("cupola.session_id")
    if session_id is not None:
        headers["x-agent-session-id"] = session_id
    timing = str(scope.get("cupola.server_timing", ""))
    if timing:
        headers["server-timing"] = timing
    return JSONResponse(error.body(scope["cupola.request_id"]), error.status, headers)


def caller(request: Request) -> Principal:
    """Who sent the request."""
    principal = request.scope["cupola.caller"]
    if isinstance(principal, SandboxPrincipal):
        raise CupolaError("forbidden", "The token of a sandbox is not good for this.", status=403)
    if not isinstance(principal, Principal):
        raise TypeError("a route was reached without a caller")
    return principal


async def read_body(request: Request, limit: int) -> bytes:
    """The body, of at most so many bytes. Raises CupolaError (413)."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise CupolaError("payload_too_large", f"The body is larger than {limit} bytes.", status=413)
        parts.append(part)
    return b"".join(parts)


async def json_object(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises CupolaError (400, 413)."""
    body = await read_body(request, JSON_LIMIT)
    try:
        # Stricter than the standard library: no NaN, no numbers that are too large, no halves of surrogate pairs.
        value = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CupolaError("bad_request", f"The body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CupolaError("bad_request", "The body must be a JSON object.")
    return value


def limit_and_order(query: Mapping[str, str], usual: Literal["asc", "desc"]) -> tuple[int, Literal["asc", "desc"]]:
    """`limit` and `order` of a list call; `usual` is the order when there is none. Raises CupolaError (400)."""
    limit_text, order_text = query.get("limit", "20"), query.get("order", usual)
    if not re.fullmatch("[0-9]{1,3}", limit_text) or not 1 <= int(limit_text) <= 100:
        raise CupolaError("bad_request", "limit: expected a whole number from 1 to 100.", param="limit")
    if order_text not in ("asc", "desc"):
        raise CupolaError("bad_request", "order: expected asc or desc.", param="order")
    return int(limit_text), "asc" if order_text == "asc" else "desc"


async def page_request(
    query: Mapping[str, str], key_of: Callable[[str], Awaitable[int | None]], allowed: Iterable[str] = ()
) -> PageRequest:
    """`limit`, `order`, `after` and `before` of a list call; `key_of` finds the key of an item by its id.

    Raises CupolaError (400).
    """
    limit, order = limit_and_order(query, "desc")
    cursors: dict[str, int | None] = {}
    for name in ("after", "before"):
        cursors[name] = None
        if query.get(name):
            cursors[name] = await key_of(query[name])
            if cursors[name] is None:
                raise CupolaError("bad_request", f"{name}: no item has the id {query[name][:128]!r}.", param=name)
    return PageRequest(limit, order, cursors["after"], cursors["before"])


def page_body(page: Page[Item], show: Callable[[Item], dict[str, Any]], id_of: Callable[[Item], str]) -> dict[str, Any]:
    """The list envelope. `last_id` is null on the last page: clients ask for more while it is not."""
    return {
        "object": "list",
        "data": [show(item) for item in page.items],
        "first_id": id_of(page.items[0]) if page.items else None,
        "last_id": id_of(page.items[-1]) if page.items and page.has_more else None,
        "has_more": page.has_more,
    }
