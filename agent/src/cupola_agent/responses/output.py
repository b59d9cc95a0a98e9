"""The answer of one response as it grows: its object, its items, its events (contract sections 4.4 to 4.6).

Items and the object are replaced, never changed in place, so that what was encoded or handed out stays what it was.
When nobody can ever see the events, because the answer is given as a whole, none are made.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cupola_agent import ids, jsons

Json = dict[str, Any]
Append = Callable[[str, bytes], None]

SERVER_ERROR = {"code": "server_error", "message": "An internal server error occurred."}


class OutputError(Exception):
    """The handler gave something that the protocol does not allow at this point. Its response fails."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a response ends: its terminal status, and what else changes in the object with it."""

    status: Literal["completed", "failed", "incomplete", "cancelled"]
    changes: Json = field(default_factory=dict)

    @classmethod
    def completed(cls, usage: Json | None = None) -> "Ending":
        return cls("completed", {} if usage is None else {"usage": usage})

    @classmethod
    def failed(cls, error: Json = SERVER_ERROR) -> "Ending":
        return cls("failed", {"error": error})

    @classmethod
    def incomplete(cls, reason: str | None) -> "Ending":
        return cls("incomplete", {"incomplete_details": {"reason": reason} if reason else None})

    def now(self) -> "Ending":
        """The same with its time, where the object has one."""
        if self.status != "completed":
            return self
        return Ending(self.status, {**self.changes, "completed_at": int(time.time())})

    @classmethod
    def cancelled(cls) -> "Ending":
        """Contract section 4.9: what was said so far is dropped."""
        return cls("cancelled")


class Output:
    """Builds one response. `append` takes its events, by type and as JSON; None when nobody will ever see them.

    `first_number` continues the numbers of a response that another process began; `items` are the ones it finished.
    """

    def __init__(
        self, response: Json, append: Append | None, *, first_number: int = 0, items: Sequence[Json] = ()
    ) -> None:
        self._response = response
        self._append = append
        self._next_number = first_number
        self._items: list[Json] = []
        self.partition = ids.partition_of(response["id"]) or ids.new_partition()
        self._internal: dict[int, Json] = {}
        self.internal_metadata: Json = {}
        self.ending: Ending | None = None
        for item in items:
            self._items.append(self._stamped(item, len(self._items)))

    @classmethod
    def restored(cls, stored: Json, append: Append | None, first_number: int) -> "Output":
        """Goes on with a response as it was stored."""
        metadata = dict(stored.get("metadata") or {})
        noted = metadata.pop("_internal_metadata", None)
        response = {**stored, "metadata": metadata}
        output = cls(response, append, first_number=first_number, items=stored.get("output") or ())
        output.internal_metadata = dict(noted or {})
        return output

    @property
    def response(self) -> Json:
        """The response as it stands, with every item that was opened: an open one as it was when it was added."""
        return {**self._response, "output": list(self._items)}

    @property
    def stored(self) -> Json:
        """The response as a store keeps it: with what the handler noted for itself (contract section 4.13)."""
        response = self.response
        for index, noted in self._internal.items():
            response["output"][index] = {**response["output"][index], "internal_metadata": noted}
        if self.internal_metadata:
            response["metadata"] = {**(response["metadata"] or {}), "_internal_metadata": self.internal_metadata}
        return response

    @property
    def response_id(self) -> str:
        return str(self._response["id"])

    @property
    def status(self) -> str:
        return str(self._response["status"])

    @property
    def ended(self) -> bool:
        """Whether the last word is said."""
        return self.ending is not None

    @property
    def items_count(self) -> int:
        return len(self._items)

    @property
    def seen(self) -> bool:
        """Whether events are made at all; where they are not, a writer may skip what only they would show."""
        return self._append is not None

    def new_item_id(self, prefix: str) -> str:
        return ids.new_id(prefix, self.partition)

    def change(self, **changes: Any) -> None:
        """Changes fields of the response object, such as `metadata`; nobody is told before the next lifecycle event."""
        self._response |= changes

    def emit(self, kind: str, **fields: Any) -> None:
        """The next event. Raises OutputError for what is not JSON."""
        if self._append is None:
            return
        try:
            data = jsons.encode({"type": kind, **fields, "sequence_number": self._next_number})
        except (TypeError, ValueError) as error:
            raise OutputError(f"not JSON: {error}") from error
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
        """Adds an item to the output and tells it; gives its `output_index`. Raises OutputError after the last word."""
        if self.ending is not None:
            raise OutputError(f"an item of type {item.get('type')!r} came after the response was {self.ending.status}")
        index = len(self._items)
        stamped = self._stamped(item, index)
        self._items.append(stamped)
        self.emit("response.output_item.added", output_index=index, item=stamped)
        return index

    def add_item(self, item: Json) -> None:
        """Adds an item that nobody has seen grow, in its final state."""
        self._items.append(self._stamped(item, len(self._items)))

    def close_item(self, output_index: int, item: Json) -> None:
        """Replaces an open item by its final state and tells it."""
        stamped = self._stamped(item, output_index)
        self._items[output_index] = stamped
        self.emit("response.output_item.done", output_index=output_index, item=stamped)

    def begin(self) -> None:
        """The first two events of every response."""
        self.lifecycle("created")
        self.lifecycle("in_progress")

    def lifecycle(self, kind: str) -> None:
        """An event that carries the whole response as it stands."""
        if self._append is not None:
            self.emit(f"response.{kind}", response=self.response)

    def end(self, ending: Ending) -> None:
        """The handler's last word, which counts once it has ended. Raises OutputError for a second one."""
        if self.ending is not None:
            raise OutputError(f"the response was {self.ending.status} already, and cannot be {ending.status}")
        self.ending = ending

    def stored_as(self, ending: Ending) -> Json:
        """The response as a store keeps it in this terminal state. Nobody sees it in that state before `settle`."""
        stored = {**self.stored, **ending.changes, "status": ending.status}
        if ending.status == "cancelled":
            stored["output"] = []
        return stored

    def settle(self, ending: Ending) -> None:
        """Puts the response into its terminal state. Finished items stay (contract section 9, row 4)."""
        self.ending = ending
        self._response |= ending.changes
        self._response["status"] = ending.status
        if ending.status == "cancelled":
            self._items = []
            self._internal = {}

    def tell_end(self) -> None:
        """The terminal event. A cancelled response ends with `response.failed` (contract section 4.9)."""
        self.lifecycle("failed" if self.status == "cancelled" else self.status)

    def _stamped(self, item: Json, index: int) -> Json:
        """The item with what the platform wants on each (contract section 4.4); a value that is there wins.

        What the handler noted for itself is kept apart: nobody is told.
        """
        stamped = {
            "response_id": self._response["id"],
            "agent_reference": self._response["agent_reference"],
            **item,
        }
        noted = stamped.pop("internal_metadata", None)
        if noted is not None:
            self._internal[index] = noted
        return stamped
