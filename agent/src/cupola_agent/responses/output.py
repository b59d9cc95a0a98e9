"""The answer of one response as it grows: its object, its items, its events (contract sections 4.4 to 4.6).

Items and the object are replaced, never changed in place, so that what was encoded or handed out stays what it was.
When nobody can ever see the events, because the answer is given as a whole, none are made.
"""

import time
from collections.abc import Callable
from typing import Any

from cupola_agent import ids, jsons

Json = dict[str, Any]
Append = Callable[[str, bytes], None]
"""Takes the type of the next event and its data as JSON; the number in the data is the count of events so far."""

SERVER_ERROR = {"code": "server_error", "message": "An internal server error occurred."}
TERMINAL_STATUSES = frozenset({"completed", "failed", "incomplete", "cancelled"})


class OutputError(Exception):
    """The handler gave something that the protocol does not allow at this point. Its response fails."""


class Output:
    """Builds one response. `append` receives each encoded event; None when nobody will ever see them.

    `first_number` continues the numbers of a response that another process began.
    """

    def __init__(self, response: Json, append: Append | None, first_number: int = 0) -> None:
        self._response = response
        self._append = append
        self._next_number = first_number
        self._items: list[Json | None] = []
        self._partition = ids.partition_of(response["id"]) or ids.new_partition()

    @property
    def response(self) -> Json:
        """The response as it stands, with the items that were opened: an open one in its state when it was added."""
        return {**self._response, "output": [item for item in self._items if item is not None]}

    @property
    def status(self) -> str:
        return str(self._response["status"])

    @property
    def ended(self) -> bool:
        return self._response["status"] in TERMINAL_STATUSES

    @property
    def seen(self) -> bool:
        """Whether events are made at all; where they are not, a writer may skip what only they would show."""
        return self._append is not None

    def new_item_id(self, prefix: str) -> str:
        return ids.new_id(prefix, self._partition)

    def emit(self, kind: str, **fields: Any) -> None:
        """The next event. Raises OutputError after the terminal one and for what is not JSON."""
        if self._append is None:
            return
        data = self._encode({"type": kind, **fields, "sequence_number": self._next_number})
        self._next_number += 1
        self._append(kind, data)

    def emit_encoded(self, kind: str, fields: bytes) -> None:
        """The next event of which the fields are encoded already: `{"type":…,…` without the closing brace."""
        if self._append is None:
            return
        data = b'%b,"sequence_number":%d}' % (fields, self._next_number)
        self._next_number += 1
        self._append(kind, data)

    def open_item(self, item: Json) -> int:
        """Adds an item to the output and tells it; gives its `output_index`."""
        index = len(self._items)
        stamped = self._stamped(item)
        self._items.append(stamped)
        self.emit("response.output_item.added", output_index=index, item=stamped)
        return index

    def close_item(self, output_index: int, item: Json) -> None:
        """Replaces an open item by its final state and tells it."""
        stamped = self._stamped(item)
        self._items[output_index] = stamped
        self.emit("response.output_item.done", output_index=output_index, item=stamped)

    def _stamped(self, item: Json) -> Json:
        """The item with what the platform wants on each (contract section 4.4); a value that is there wins."""
        return {
            "response_id": self._response["id"],
            "agent_reference": self._response["agent_reference"],
            **item,
        }

    def _encode(self, event: Json) -> bytes:
        try:
            return jsons.encode(event)
        except (TypeError, ValueError) as error:
            raise OutputError(f"not JSON: {error}") from error

    def lifecycle(self, kind: str, **changes: Any) -> None:
        """An event that carries the whole response, after `changes` to it: `created`, `completed`, …"""
        self._response |= changes
        if self._append is not None:
            self.emit(f"response.{kind}", response=self.response)

    def completed(self, usage: Json | None = None) -> None:
        changes = {} if usage is None else {"usage": usage}
        self.lifecycle("completed", status="completed", completed_at=int(time.time()), **changes)

    def failed(self, error: Json = SERVER_ERROR, **changes: Any) -> None:
        """Ends the response; what was said so far stays in its output (contract section 9, row 4)."""
        self.lifecycle("failed", status="failed", error=error, **changes)
