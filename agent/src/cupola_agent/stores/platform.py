"""Responses kept by the platform (contract section 4.12). Who may see what is the platform's to decide, by call id."""

from collections.abc import Sequence

from cupola_agent.call import Caller
from cupola_agent.platform.api import Platform, segment
from cupola_agent.stores.base import ItemPage, Json, UnavailableError

_PAGE = 100
_BATCH = 100


class PlatformResponseStore:
    """A ResponseStore on the platform. Closing it closes the connections of `platform`."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def open(self) -> None:
        """There is nothing to get ready."""

    async def create(
        self, response: Json, input_items: Sequence[Json], history_item_ids: Sequence[str], caller: Caller
    ) -> None:
        body = {"response": response, "input_items": list(input_items), "history_item_ids": list(history_item_ids)}
        await self._platform.call("POST", "/storage/responses", body=body, caller=caller)

    async def update(self, response: Json, caller: Caller) -> None:
        await self._platform.call("POST", _path(str(response["id"])), body=response, caller=caller)

    async def get(self, response_id: str, caller: Caller) -> Json:
        reply = await self._platform.call("GET", _path(response_id), caller=caller)
        if not isinstance(reply.body, dict):
            raise UnavailableError("The platform answered with something else than a response.")
        return reply.body

    async def delete(self, response_id: str, caller: Caller) -> None:
        await self._platform.call("DELETE", _path(response_id), caller=caller)

    async def input_items(
        self, response_id: str, caller: Caller, *, limit: int, ascending: bool, after: str | None, before: str | None
    ) -> ItemPage:
        # One more than asked for tells whether more follow: the platform itself may not say.
        page = await self._input_page(response_id, caller, min(limit + 1, _PAGE), ascending, after, before)
        more = len(page) > limit
        if len(page) == limit == _PAGE:
            more = bool(await self._input_page(response_id, caller, 1, ascending, str(page[-1].get("id")), before))
        return ItemPage(tuple(page[:limit]), more)

    async def _input_page(
        self, response_id: str, caller: Caller, limit: int, ascending: bool, after: str | None, before: str | None
    ) -> list[Json]:
        query = {"limit": str(limit), "order": "asc" if ascending else "desc"}
        query |= {name: cursor for name, cursor in (("after", after), ("before", before)) if cursor is not None}
        reply = await self._platform.call("GET", f"{_path(response_id)}/input_items", query=query, caller=caller)
        items = reply.body.get("data") if isinstance(reply.body, dict) else None
        if not isinstance(items, list):
            raise UnavailableError("The platform answered with something else than a page of items.")
        return items

    async def items(self, item_ids: Sequence[str], caller: Caller) -> list[Json | None]:
        found: list[Json | None] = []
        for start in range(0, len(item_ids), _BATCH):
            batch = list(item_ids[start : start + _BATCH])
            body = {"item_ids": batch}
            reply = await self._platform.call("POST", "/storage/items/batch/retrieve", body=body, caller=caller)
            if not isinstance(reply.body, list) or len(reply.body) != len(batch):
                raise UnavailableError("The platform answered with other items than it was asked for.")
            found += reply.body
        return found

    async def history_item_ids(
        self, caller: Caller, *, previous_response_id: str | None, conversation_id: str | None, limit: int = -1
    ) -> list[str]:
        query = {"limit": str(limit)}
        if previous_response_id is not None:
            query["previous_response_id"] = previous_response_id
        if conversation_id is not None:
            query["conversation_id"] = conversation_id
        reply = await self._platform.call("GET", "/storage/history/item_ids", query=query, caller=caller)
        if not isinstance(reply.body, list):
            raise UnavailableError("The platform answered with something else than a list of ids.")
        return [str(item_id) for item_id in reply.body]

    async def close(self) -> None:
        await self._platform.close()


def _path(response_id: str) -> str:
    return f"/storage/responses/{segment(response_id)}"
