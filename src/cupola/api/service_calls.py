"""What the routes that sandboxes call have in common: for whom they call, and bodies as the container contract wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from cupola.api.http import read_body
from cupola.domain.errors import invalid_request
from cupola.domain.principal import SandboxPrincipal, ServiceCaller
from cupola.domain.stored_response import decode
from cupola.identity.call_ids import CALL_ID_HEADER, CallIds

SMALL = 64 * 1024
"""Bytes of a body that is parsed faster than a thread could be asked to."""

Parsed = TypeVar("Parsed")


class _AnyText(Convertor[str]):
    """An id in a path may hold any character: agents choose them."""

    regex = r"[\s\S]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyText())


def sandbox_of(request: Request) -> SandboxPrincipal:
    """The sandbox that calls."""
    sandbox = request.scope["cupola.caller"]
    if not isinstance(sandbox, SandboxPrincipal):
        raise TypeError("a route of sandboxes was reached by somebody else")
    return sandbox


def service_caller(request: Request, call_ids: CallIds) -> ServiceCaller:
    """The sandbox that calls, and its user by the call id; without one it calls for nobody. Raises CupolaError (401)."""
    sandbox, call_id = sandbox_of(request), request.headers.get(CALL_ID_HEADER, "")
    return ServiceCaller(sandbox, call_ids.user(sandbox.session_guid, call_id) if call_id else "")


async def parsed_body(request: Request, limit: int, parse: Callable[[bytes], Parsed]) -> Parsed:
    """What `parse` makes of the body. Raises CupolaError (400, 413)."""
    body = await read_body(request, limit)
    if len(body) <= SMALL:
        return parse(body)
    return await asyncio.to_thread(parse, body)


def parse_object(text: bytes) -> dict[str, Any]:
    """JSON as an object; nothing is an empty one. Raises CupolaError (400)."""
    return decode(text or b"{}", dict[str, Any])


def limit_of(request: Request, usual: int, most: int) -> int:
    """`limit` of a list call: at most `most`, whatever is asked for. Raises CupolaError (400)."""
    text = request.query_params.get("limit", str(usual))
    if not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise invalid_request("limit: expected a whole number from 1 on.", "limit")
    return min(int(text), most)


def json_answer(body: bytes, status: int = 200, etag: str | None = None) -> Response:
    """JSON that is text already."""
    headers = {} if etag is None else {"etag": etag}
    return Response(body, status, headers, media_type="application/json")
