"""Compaction: a conversation as one opaque item, which a later request may begin with (contract section 8).

Without a handler of the developer's own nothing is left out: the item holds the conversation, and a handler of
responses finds it in its history again.
"""

import time
from collections.abc import Sequence
from typing import Any

from cupola_agent import ids, jsons
from cupola_agent.errors import ApiError, invalid_request
from cupola_agent.handlers import Handler
from cupola_agent.http import Answer, Call
from cupola_agent.responses.compacted import compaction_item, expanded
from cupola_agent.responses.input import input_items
from cupola_agent.responses.objects import ResponseRequest
from cupola_agent.responses.request import parse_request
from cupola_agent.responses.storage import storage_failed
from cupola_agent.routing import Route
from cupola_agent.stores.base import ResponseStore, StoreError

ARGUMENTS = ("items", "request")

Json = dict[str, Any]

_NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


class Compaction:
    """`POST /responses/compact`. `handler` makes a summary of its own: text, or the items to keep."""

    def __init__(self, store: ResponseStore, handler: Handler | None) -> None:
        self._store = store
        self._handler = handler

    def route(self) -> Route:
        return Route("POST", "/responses/compact", self._answered)

    async def _answered(self, call: Call) -> Answer:
        try:
            return Answer.json(200, jsons.encode(await self._compact(call)))
        except ApiError as error:
            return error.answer(call.request_id)

    async def _compact(self, call: Call) -> Json:
        fields = parse_request(await call.exchange.body())
        if not fields.get("model"):
            raise invalid_request("Missing required parameter: 'model'.", "model", "missing_required_parameter")
        previous = fields.get("previous_response_id")
        partition = (ids.partition_of(previous) if previous else None) or ids.new_partition()
        items = [*await self._history(previous, call), *input_items(fields.get("input"), partition)]
        return {
            "id": ids.new_id("resp", partition),
            "object": "response.compaction",
            "created_at": int(time.time()),
            "output": await self._output(items, fields, partition),
            "usage": _NO_USAGE,
        }

    async def _history(self, previous: str | None, call: Call) -> Sequence[Json]:
        if not previous:
            return ()
        caller = call.caller
        try:
            item_ids = await self._store.history_item_ids(caller, previous_response_id=previous, conversation_id=None)
            found = await self._store.items(item_ids, caller)
        except StoreError as error:
            raise storage_failed(error) from error
        return [item for item in found if item is not None]

    async def _output(self, items: list[Json], fields: Json, partition: str) -> list[Json]:
        items = [piece for item in items for piece in expanded(item)]
        if self._handler is None:
            return [compaction_item(items, partition)]
        result = await self._handler.call(
            {name: {"items": items, "request": ResponseRequest(fields)}[name] for name in self._handler.names}
        )
        if isinstance(result, str):
            content = [{"type": "input_text", "text": result}]
            result = [{"type": "message", "role": "user", "content": content, "status": "completed"}]
        return [compaction_item(input_items(list(result), partition), partition)]
