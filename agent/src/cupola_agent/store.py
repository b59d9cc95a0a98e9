"""Responses that can be read again, in memory."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response in its last state with what led to it: enough to rebuild the history of its chain.

    `user_id` is the user who may see it; "" leaves it open to everyone.
    """

    response: Mapping[str, Any]
    input_items: Sequence[Mapping[str, Any]]
    user_id: str = ""

    @property
    def response_id(self) -> str:
        return str(self.response["id"])

    @property
    def previous_response_id(self) -> str | None:
        previous = self.response["previous_response_id"]
        return None if previous is None else str(previous)


class MemoryStore:
    """Keeps the newest `capacity` responses."""

    def __init__(self, capacity: int = 1000) -> None:
        self._capacity = capacity
        self._by_id: OrderedDict[str, StoredResponse] = OrderedDict()

    def __contains__(self, response_id: str) -> bool:
        """Whether the id is taken, by whomever."""
        return response_id in self._by_id

    def put(self, stored: StoredResponse) -> None:
        self._by_id[stored.response_id] = stored
        if len(self._by_id) > self._capacity:
            self._by_id.popitem(last=False)

    def get(self, response_id: str, user_id: str = "") -> StoredResponse | None:
        """The response, or None when there is none that this user may see."""
        stored = self._by_id.get(response_id)
        if stored is None or stored.user_id not in ("", user_id):
            return None
        return stored

    def delete(self, response_id: str) -> None:
        self._by_id.pop(response_id, None)
