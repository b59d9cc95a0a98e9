"""The response store that agents keep their responses in (container contract, section 4.12).

Every write can be repeated when its answer was lost: a create is known by its request id, and an update puts the same in its
place.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.api.service_calls import json_answer, limit_of, parsed_body, service_caller
from cupola.domain.errors import invalid_request
from cupola.domain.stored_response import decode, list_text, parse_new_response, parse_response, response_text
from cupola.identity.call_ids import CallIds
from cupola.storage import responses
from cupola.storage.database import Database

MOST_ITEMS = 1000
"""Items that one call asks for."""


class _Wanted(msgspec.Struct):
    item_ids: list[str]


class StoredResponsesApi:
    """`/storage/responses`, `/storage/items` and `/storage/history`. `max_body` is in bytes."""

    def __init__(
        self, database: Database, call_ids: CallIds, max_body: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._call_ids = call_ids
        self._max_body = max_body
        self._clock = clock

    def routes(self) -> list[Route]:
        """Paths are relative to the project. An id may hold any character, also a slash."""
        one = "/storage/responses/{id:any}"
        return [
            Route("/storage/responses", self.create, methods=["POST"]),
            Route(f"{one}/input_items", self.input_items, methods=["GET"]),
            Route(one, self.update, methods=["POST"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route("/storage/items/batch/retrieve", self.retrieve_items, methods=["POST"]),
            Route("/storage/history/item_ids", self.history, methods=["GET"]),
        ]

    async def create(self, request: Request) -> Response:
        """POST /storage/responses."""
        caller = service_caller(request, self._call_ids)
        new = await parsed_body(request, self._max_body, parse_new_response)
        request_id, now = request.headers.get("x-ms-client-request-id", "")[:128], int(self._clock())
        await self._database.write(
            lambda connection: responses.create_response(connection, caller, new, request_id, now)
        )
        return JSONResponse({"id": new.response.id}, 201)

    async def update(self, request: Request) -> Response:
        """POST /storage/responses/{id}: the whole response anew."""
        caller = service_caller(request, self._call_ids)
        response = await parsed_body(request, self._max_body, parse_response)
        if response.id != request.path_params["id"]:
            raise invalid_request("id: the body is of another response than the path.", "id")
        now = int(self._clock())
        await self._database.write(lambda connection: responses.update_response(connection, caller, response, now))
        return JSONResponse({"id": response.id})

    async def get(self, request: Request) -> Response:
        """GET /storage/responses/{id}."""
        caller, response_id = service_caller(request, self._call_ids), request.path_params["id"]
        envelope, output = await self._database.read(
            lambda connection: responses.get_response(connection, caller, response_id)
        )
        return json_answer(response_text(envelope, output))

    async def delete(self, request: Request) -> Response:
        """DELETE /storage/responses/{id}."""
        caller, response_id = service_caller(request, self._call_ids), request.path_params["id"]
        await self._database.write(lambda connection: responses.delete_response(connection, caller, response_id))
        return Response(status_code=204)

    async def input_items(self, request: Request) -> Response:
        """GET /storage/responses/{id}/input_items: history and input."""
        caller, query = service_caller(request, self._call_ids), request.query_params
        limit, order = limit_of(request, 20, 100), _order(query.get("order", "desc"))
        found = await self._database.read(
            lambda connection: responses.input_items(
                connection,
                caller,
                request.path_params["id"],
                limit=limit,
                order=order,
                after=query.get("after"),
                before=query.get("before"),
            )
        )
        return json_answer(b'{"object":"list","data":' + list_text(found) + b"}")

    async def retrieve_items(self, request: Request) -> Response:
        """POST /storage/items/batch/retrieve: the items in the order asked for, null for what is not there."""
        caller = service_caller(request, self._call_ids)
        ids = (await parsed_body(request, self._max_body, lambda text: decode(text, _Wanted))).item_ids
        if len(ids) > MOST_ITEMS:
            raise invalid_request(f"item_ids: expected at most {MOST_ITEMS}.", "item_ids")
        found = await self._database.read(lambda connection: responses.read_items(connection, caller, ids))
        return json_answer(list_text([found.get(item_id, b"null") for item_id in ids]))

    async def history(self, request: Request) -> Response:
        """GET /storage/history/item_ids: of a previous response, of a conversation, or of both."""
        caller, query = service_caller(request, self._call_ids), request.query_params
        limit = query.get("limit", "-1")
        if not re.fullmatch("-1|[0-9]{1,9}", limit):
            raise invalid_request("limit: expected -1 for all, or a whole number.", "limit")
        ids: list[str] = []
        previous, conversation = query.get("previous_response_id"), query.get("conversation_id")
        if previous is not None:
            ids += await self._database.read(
                lambda connection: responses.history_of_response(connection, caller, previous)
            )
        if conversation is not None:
            ids += await self._database.read(
                lambda connection: responses.history_of_conversation(connection, caller, conversation)
            )
        return JSONResponse(_newest(ids, int(limit)))


def _newest(ids: list[str], limit: int) -> list[str]:
    unique = list(dict.fromkeys(ids))
    return unique if limit < 0 else unique[max(0, len(unique) - limit) :]


def _order(text: str) -> Literal["asc", "desc"]:
    if text not in ("asc", "desc"):
        raise invalid_request("order: expected asc or desc.", "order")
    return "asc" if text == "asc" else "desc"
