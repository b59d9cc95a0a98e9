"""Responses in memory: bounded by count and by bytes, the least recently written go first."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cupola_agent.call import Caller
from cupola_agent.stores.base import AlreadyExistsError, ItemPage, Json, RefusedError
from cupola_agent.stores.records import (
    RETENTION_SECONDS,
    EncodedItem,
    EncodedResponse,
    decode_items,
    decode_response,
    encode_items,
    newest,
    not_found,
    page_ids,
    visible,
)

# What a response and an item cost besides their text: measured as objects, dictionary entries and tuples.
_RESPONSE_OVERHEAD = 1200
_ITEM_OVERHEAD = 600
_ID_OVERHEAD = 8


@dataclass(frozen=True, slots=True)
class _Entry:
    owner: str
    response: EncodedResponse
    input: tuple[EncodedItem, ...]
    history: tuple[str, ...]
    expires_at: float

    @property
    def items(self) -> Iterator[EncodedItem]:
        """Those that can be read on their own, oldest first."""
        return (item for item in (*self.input, *self.response.output) if item.item_id)

    @property
    def size(self) -> int:
        items = len(self.input) + len(self.response.output)
        texts = self.response.size + sum(len(item.body) for item in self.input)
        return texts + _RESPONSE_OVERHEAD + _ITEM_OVERHEAD * items + _ID_OVERHEAD * len(self.history)


class MemoryResponseStore:
    """A ResponseStore in this process. Each call takes time for what it touches, never for what is kept besides.

    Keeps at most `max_responses` and about `max_bytes`, each for `retention_seconds` after it was written last.
    """

    def __init__(
        self,
        *,
        max_responses: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        retention_seconds: float = RETENTION_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._retention = retention_seconds
        self._clock = clock
        self._bytes = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        # By owner and item id: where the item is kept. Several responses may hold one item; the newest is read.
        self._items: dict[tuple[str, str], dict[str, bytes]] = {}
        self._conversations: dict[str, dict[str, None]] = {}

    def open(self) -> None:
        """There is nothing to get ready."""

    async def create(
        self, response: Json, input_items: Sequence[Json], history_item_ids: Sequence[str], caller: Caller
    ) -> None:
        encoded = EncodedResponse.of(response)
        self._forget_expired()
        if encoded.response_id in self._entries:
            raise AlreadyExistsError(f"Response with id '{encoded.response_id}' already exists.")
        inputs, history = encode_items(input_items), tuple(history_item_ids)
        self._put(_Entry(caller.user_id, encoded, inputs, history, self._clock() + self._retention))

    async def update(self, response: Json, caller: Caller) -> None:
        encoded = EncodedResponse.of(response)
        entry = self._entry(encoded.response_id, caller)
        self._put(replace(entry, response=encoded, expires_at=self._clock() + self._retention))

    async def get(self, response_id: str, caller: Caller) -> Json:
        response = self._entry(response_id, caller).response
        return decode_response(response.envelope, [item.body for item in response.output])

    async def delete(self, response_id: str, caller: Caller) -> None:
        self._entry(response_id, caller)
        self._drop(response_id)

    async def input_items(
        self, response_id: str, caller: Caller, *, limit: int, ascending: bool, after: str | None, before: str | None
    ) -> ItemPage:
        entry = self._entry(response_id, caller)
        own = {item.item_id: item.body for item in entry.input if item.item_id}
        ids = newest((*entry.history, *own), -1)
        bodies: list[bytes] = []
        for item_id in page_ids(ids, ascending=ascending, after=after, before=before):
            body = own.get(item_id) or self._item(item_id, caller)
            if body is not None:
                bodies.append(body)
            if len(bodies) > limit:
                break
        return ItemPage(tuple(decode_items(bodies[:limit])), len(bodies) > limit)

    async def items(self, item_ids: Sequence[str], caller: Caller) -> list[Json | None]:
        self._forget_expired()
        bodies = [self._item(item_id, caller) for item_id in item_ids]
        found = iter(decode_items([body for body in bodies if body is not None]))
        return [None if body is None else next(found) for body in bodies]

    async def history_item_ids(
        self, caller: Caller, *, previous_response_id: str | None, conversation_id: str | None, limit: int = -1
    ) -> list[str]:
        ids: list[str] = []
        if previous_response_id is not None:
            entry = self._entry(previous_response_id, caller)
            ids += (*entry.history, *(item.item_id for item in entry.items))
        if conversation_id is not None:
            self._forget_expired()
            for response_id in self._conversations.get(conversation_id, ()):
                entry = self._entries[response_id]
                if visible(entry.owner, caller):
                    ids += (item.item_id for item in entry.items)
        return newest(ids, limit)

    async def close(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self._items.clear()
        self._conversations.clear()
        self._bytes = 0

    def _entry(self, response_id: str, caller: Caller) -> _Entry:
        self._forget_expired()
        entry = self._entries.get(response_id)
        if entry is None or not visible(entry.owner, caller):
            raise not_found(response_id)
        return entry

    def _item(self, item_id: str, caller: Caller) -> bytes | None:
        for owner in (caller.user_id, ""):
            holders = self._items.get((owner, item_id))
            if holders:
                return holders[next(reversed(holders))]
        return None

    def _put(self, entry: _Entry) -> None:
        if entry.size > self._max_bytes:
            raise RefusedError(f"A response with its input may take at most {self._max_bytes} bytes of memory.")
        response = entry.response
        place = response.conversation_id
        if place is not None and response.finished:
            # An update of a finished response keeps its place in the conversation.
            self._conversations.setdefault(place, {}).setdefault(response.response_id)
        if response.response_id in self._entries:
            self._drop(response.response_id, stays_in=place if response.finished else None)
        self._entries[response.response_id] = entry
        self._bytes += entry.size
        for item in entry.items:
            self._items.setdefault((entry.owner, item.item_id), {})[response.response_id] = item.body
        while len(self._entries) > self._max_responses or self._bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, response_id: str, stays_in: str | None = None) -> None:
        entry = self._entries.pop(response_id)
        self._bytes -= entry.size
        for item in entry.items:
            holders = self._items.get((entry.owner, item.item_id), {})
            holders.pop(response_id, None)
            if not holders:
                self._items.pop((entry.owner, item.item_id), None)
        conversation_id = entry.response.conversation_id
        if conversation_id is None or conversation_id == stays_in:
            return
        members = self._conversations.get(conversation_id, {})
        members.pop(response_id, None)
        if not members:
            self._conversations.pop(conversation_id, None)

    def _forget_expired(self) -> None:
        # Every write moves to the end and lives equally long, so the first to expire is at the front.
        now = self._clock()
        while self._entries:
            response_id, entry = next(iter(self._entries.items()))
            if entry.expires_at > now:
                return
            self._drop(response_id)
