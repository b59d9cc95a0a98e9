"""What came before a turn: ids, to be stored with it, and the items behind them (contract section 4.11)."""

from collections.abc import Sequence

from cupola_agent.call import Caller
from cupola_agent.responses.compacted import compacted, expanded
from cupola_agent.responses.objects import Json
from cupola_agent.stores.base import ResponseStore


class History:
    """The history of one turn. `limit` is how many items count at most, the newest; -1 for all."""

    def __init__(
        self,
        store: ResponseStore,
        caller: Caller,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        given: Sequence[Json],
        limit: int,
    ) -> None:
        self._store = store
        self._caller = caller
        self._previous_response_id = previous_response_id
        self._conversation_id = conversation_id
        self._given = given
        self._limit = limit
        self._items: Sequence[Json] | None = None
        self.item_ids: Sequence[str] = ()

    async def find(self) -> None:
        """Finds the ids. Raises StoreError; NotFoundError when there is no such previous response."""
        if self._previous_response_id or self._conversation_id:
            self.item_ids = await self._store.history_item_ids(
                self._caller,
                previous_response_id=self._previous_response_id,
                conversation_id=self._conversation_id,
                limit=self._limit,
            )

    def remember(self, items: Sequence[Json]) -> None:
        """Takes items that are in no store for what came before."""
        self._items = items
        self.item_ids = [item["id"] for item in items if "id" in item]

    async def resolved(self, given: Sequence[Json]) -> tuple[Json, ...]:
        """The items, each reference replaced by what it refers to; one to nothing is dropped. Raises StoreError."""
        references = [item["id"] for item in given if item["type"] == "item_reference"]
        found = dict(zip(references, await self._store.items(references, self._caller), strict=True))
        whole = [found[item["id"]] if item["type"] == "item_reference" else item for item in given]
        return tuple(item for item in whole if item is not None)

    async def items(self) -> list[Json]:
        """The items, with those that the input of the turn carries in compacted form. Raises StoreError."""
        if self._items is None:
            found = await self._store.items(self.item_ids, self._caller) if self.item_ids else []
            self._items = [item for item in found if item is not None]
        return [piece for item in (*self._items, *compacted(self._given)) for piece in expanded(item)]
