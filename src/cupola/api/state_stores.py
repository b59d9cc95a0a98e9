"""The state stores of agents (container contract, section 4.15). Names and keys in paths are base64url without padding."""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cupola.api.service_calls import json_answer, limit_of, parse_object, parsed_body, sandbox_of, service_caller
from cupola.domain.errors import invalid_request
from cupola.domain.service_limits import check_tags, check_text
from cupola.domain.state_store import VALUE_BYTES, StateItem, StateStore, check_name, parse_content, parse_settings
from cupola.identity.call_ids import CallIds
from cupola.storage import state
from cupola.storage.database import Database

BODY = 2 * VALUE_BYTES
"""Bytes of the largest body: a value may be written with escapes and spaces."""
_USER = "x-ms-user-id"


class StateStoresApi:
    """`/storage/state_stores`."""

    def __init__(self, database: Database, call_ids: CallIds, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._call_ids = call_ids
        self._clock = clock

    def routes(self) -> list[Route]:
        """Paths are relative to the project."""
        stores = "/storage/state_stores"
        one = f"{stores}/{{store}}"
        item = f"{one}/items/{{key}}"
        return [
            Route(stores, self.create_store, methods=["POST"]),
            Route(one, self.get_store, methods=["GET"]),
            Route(one, self.update_store, methods=["PATCH"]),
            Route(one, self.delete_store, methods=["DELETE"]),
            Route(f"{one}/items", self.create_item, methods=["POST"]),
            Route(f"{one}/items:keys", self.list_keys, methods=["GET"]),
            Route(item, self.put_item, methods=["PUT"]),
            Route(item, self.get_item, methods=["GET"]),
            Route(item, self.delete_item, methods=["DELETE"]),
        ]

    async def create_store(self, request: Request) -> Response:
        """POST /storage/state_stores."""
        sandbox, fields = sandbox_of(request), await parsed_body(request, BODY, parse_object)
        name, settings = check_name(fields.get("name"), "name"), parse_settings(fields)
        isolation, now = fields.get("user_isolation", False), int(self._clock())
        if not isinstance(isolation, bool):
            raise invalid_request("user_isolation: expected true or false.", "user_isolation")
        store = await self._database.write(
            lambda connection: state.create_store(
                connection, sandbox, name, settings, user_isolation=isolation, now=now
            )
        )
        return JSONResponse(store.to_wire(), 201)

    async def get_store(self, request: Request) -> Response:
        """GET /storage/state_stores/{store}."""
        agent, name = sandbox_of(request).agent_key, _plain(request, "store")
        store = await self._database.read(lambda connection: state.get_store(connection, agent, name))
        return JSONResponse(store.to_wire())

    async def update_store(self, request: Request) -> Response:
        """PATCH /storage/state_stores/{store}: description, tags, item_ttl_seconds."""
        agent, name = sandbox_of(request).agent_key, _plain(request, "store")
        settings = parse_settings(await parsed_body(request, BODY, parse_object))
        now = int(self._clock())
        store = await self._database.write(
            lambda connection: state.update_store(connection, agent, name, settings, now)
        )
        return JSONResponse(store.to_wire())

    async def delete_store(self, request: Request) -> Response:
        """DELETE /storage/state_stores/{store}; one that is not there is fine."""
        agent, name = sandbox_of(request).agent_key, _plain(request, "store")
        await self._database.write(lambda connection: state.delete_store(connection, agent, name))
        return JSONResponse({"object": "state_store", "name": name, "deleted": True})

    async def create_item(self, request: Request) -> Response:
        """POST …/items."""
        place, fields = self._place(request), await parsed_body(request, BODY, parse_object)
        key, content = check_name(fields.get("key"), "key"), parse_content(fields)
        etag, now = secrets.token_hex(8), self._clock()
        item = await self._database.write(
            lambda connection: state.create_item(connection, *place(connection), key, content, etag, now)
        )
        return _answer(item, 201)

    async def put_item(self, request: Request) -> Response:
        """PUT …/items/{key}."""
        place, key = self._place(request), _plain(request, "key")
        content = parse_content(await parsed_body(request, BODY, parse_object))
        if_match, etag, now = request.headers.get("if-match"), secrets.token_hex(8), self._clock()
        item = await self._database.write(
            lambda connection: state.put_item(connection, *place(connection), key, content, if_match, etag, now)
        )
        return _answer(item)

    async def get_item(self, request: Request) -> Response:
        """GET …/items/{key}."""
        place, key, now = self._place(request), _plain(request, "key"), self._clock()
        item = await self._database.read(lambda connection: state.get_item(connection, *place(connection), key, now))
        return _answer(item)

    async def delete_item(self, request: Request) -> Response:
        """DELETE …/items/{key}; one that is not there is fine, unless there is an If-Match."""
        place, key, now = self._place(request), _plain(request, "key"), self._clock()
        if_match = request.headers.get("if-match")
        await self._database.write(
            lambda connection: state.delete_item(connection, *place(connection), key, if_match, now)
        )
        return JSONResponse({"object": "state_store.item", "key": key, "deleted": True})

    async def list_keys(self, request: Request) -> Response:
        """GET …/items:keys."""
        place, query, now = self._place(request), request.query_params, self._clock()
        limit, tags = limit_of(request, 20, 100), {}
        for name, text in query.items():
            if name.startswith("tags."):
                tags[name.removeprefix("tags.")] = text
        check_tags(tags)
        if query.get("order", "desc") not in ("asc", "desc"):
            raise invalid_request("order: expected asc or desc.", "order")
        page = await self._database.read(
            lambda connection: state.list_keys(
                connection,
                *place(connection),
                tags,
                now,
                limit=limit,
                order="asc" if query.get("order") == "asc" else "desc",
                after=query.get("after"),
                before=query.get("before"),
            )
        )
        return JSONResponse(
            {
                "object": "list",
                "data": [item.to_wire() for item in page.items],
                "first_id": page.items[0].id if page.items else None,
                "last_id": page.items[-1].id if page.items else None,
                "has_more": page.has_more,
            }
        )

    def _place(self, request: Request) -> Callable[[Connection], tuple[StateStore, str]]:
        """Finds the store of an item call, and whose its keys are: with isolation the user's that the agent names, or else
        that of the request which it answers."""
        caller, name = service_caller(request, self._call_ids), _plain(request, "store")
        named = request.headers.get(_USER)
        check_text(named, _USER, 256)

        def find(connection: Connection) -> tuple[StateStore, str]:
            store = state.get_store(connection, caller.sandbox.agent_key, name)
            if not store.user_isolation:
                return store, ""
            return store, caller.owner if named is None else f"{caller.sandbox.project}/{named}"

        return find


def _plain(request: Request, param: str) -> str:
    text: str = request.path_params[param]
    try:
        plain = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise invalid_request(f"{param}: expected base64url of a text in the path.", param) from None
    return check_name(plain, param)


def _answer(item: StateItem, status: int = 200) -> Response:
    fields: dict[str, Any] = item.to_wire()
    if item.value is not None:
        fields["value"] = msgspec.Raw(item.value)
    return json_answer(msgspec.json.encode(fields), status, item.etag)
