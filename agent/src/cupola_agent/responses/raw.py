"""Whole events that a handler gives by itself, or passes on from another model (contract sections 4.6 and 9).

The library numbers them, stamps their items, and keeps the response in step with them. `response.created` and
`response.in_progress` are told before a handler runs: its own are checked, and not told again.
"""

from collections.abc import Mapping
from typing import Any

from cupola_agent import ids
from cupola_agent.responses.lifecycle import EVENT_TYPE, OWN_FIELDS, STATUSES, TERMINAL
from cupola_agent.responses.output import SERVER_ERROR, Ending, Json, Output, OutputError
from cupola_agent.responses.prefixes import ITEM_PREFIXES
from cupola_agent.responses.raw_item import RawItem, number

# Where a stream stands, and what may come next; `*` is an event of an item, or one that this library does not know.
_NEXT: Mapping[str, Mapping[str, str]] = {
    "new": {"response.created": "open"},
    "open": {
        "response.queued": "open",
        "response.in_progress": "open",
        "response.completed": "ended",
        "response.incomplete": "ended",
        "response.failed": "ended",
        "error": "errored",
        "*": "open",
    },
    "errored": {"response.failed": "ended"},
    "ended": {},
}

# The index of the part that an event of an item is about.
_PART_INDEX: Mapping[str, str] = {
    "content_part": "content_index",
    "output_text": "content_index",
    "reasoning_summary_part": "summary_index",
    "reasoning_summary_text": "summary_index",
    "reasoning_text": "content_index",
    "refusal": "content_index",
}


_OF_NO_ITEM = frozenset({"audio"})


def is_raw_event(piece: Any) -> bool:
    """Whether this is an event, as a mapping or as an object of the `openai` package."""
    kind = piece.get("type") if isinstance(piece, Mapping) else getattr(piece, "type", None)
    return isinstance(kind, str) and (kind.startswith("response.") or kind == "error")


def _as_json(event: Any) -> Json:
    if isinstance(event, Mapping):
        return dict(event)
    dumped: Json = event.model_dump(mode="json", exclude_unset=True)
    return dumped


def _item(kind: str, event: Json) -> Json:
    item = event.get("item")
    if not isinstance(item, Mapping) or not isinstance(item.get("type"), str):
        raise OutputError(f"{kind}: expected an item with a type; came {item!r}"[:200])
    return dict(item)


class RawEvents:
    """Takes the events of one response in their order. Raises OutputError for what the protocol does not allow."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._state = "new"
        self._foreign_id: str | None = None
        self._items: dict[int, RawItem] = {}
        self._error: Json = SERVER_ERROR

    def apply(self, given: Any) -> None:
        event = _as_json(given)
        kind = str(event.pop("type", None))
        event.pop("sequence_number", None)
        if kind != "error" and not EVENT_TYPE.fullmatch(kind):
            raise OutputError(f"expected an event `response.…`; came {kind!r}")
        self._move(kind)
        if kind in STATUSES:
            self._lifecycle(kind, event.get("response"))
        elif kind == "error":
            self._fail(event)
        elif kind == "response.output_item.added":
            self._added(event)
        elif kind == "response.output_item.done":
            self._done(event)
        else:
            self._tell(kind, event)

    def finish(self) -> None:
        """The handler has no more events."""
        if self._state == "errored":
            self.interrupt()
            self._output.end(Ending.failed(self._error))
        elif self._state != "ended":
            self.interrupt()
            raise OutputError(f"the events ended: expected {' or '.join(sorted(TERMINAL))}")

    def _move(self, kind: str) -> None:
        """The one place where the state of the stream changes."""
        following = _NEXT[self._state]
        state = following.get(kind) or (None if kind in STATUSES or kind == "error" else following.get("*"))
        if state is None:
            expected = " or ".join(name for name in following if name != "*") or "nothing after the terminal event"
            raise OutputError(f"expected {expected}; came {kind}")
        self._state = state

    def _lifecycle(self, kind: str, response: Any) -> None:
        if not isinstance(response, Mapping):
            raise OutputError(f"{kind} carries no response")
        status = response.get("status")
        if status is not None and status not in STATUSES[kind]:
            raise OutputError(f"{kind}: expected status {' or '.join(sorted(STATUSES[kind]))}; came {status}")
        self._check_id(kind, response.get("id"))
        self._output.change(
            **{name: value for name, value in response.items() if name not in OWN_FIELDS and value is not None}
        )
        if kind in TERMINAL:
            self._end(kind, response)
        elif kind == "response.queued" or (kind == "response.in_progress" and self._output.status == "queued"):
            self._output.change(status=kind.removeprefix("response."))
            self._output.lifecycle(kind.removeprefix("response."))

    def _check_id(self, kind: str, response_id: Any) -> None:
        """The id is this response's; or that of another model's response, the same in all events."""
        own = self._output.response_id
        if response_id in (None, "", own):
            return
        foreign = isinstance(response_id, str) and not response_id.startswith(f"{ids.RESPONSE_PREFIX}_")
        if foreign and self._foreign_id in (None, response_id):
            self._foreign_id = response_id
            return
        raise OutputError(f"{kind}: expected response id {self._foreign_id or own}; came {response_id}")

    def _end(self, kind: str, response: Mapping[str, Any]) -> None:
        self._check_output(kind, response.get("output"))
        if kind == "response.completed":
            open_indexes = [index for index, item in self._items.items() if not item.closed]
            if open_indexes:
                raise OutputError(f"{kind}: expected response.output_item.done of output_index {open_indexes[0]}")
            self._output.end(Ending.completed())
            return
        self.interrupt()
        if kind == "response.incomplete":
            self._output.end(Ending("incomplete", {"incomplete_details": response.get("incomplete_details")}))
        elif response.get("status") == "cancelled":
            self._output.end(Ending.cancelled())
        else:
            error = response.get("error")
            known = {"code": error.get("code"), "message": error.get("message")} if isinstance(error, Mapping) else None
            self._output.end(Ending.failed(known or self._error))

    def _check_output(self, kind: str, output: Any) -> None:
        """An event may leave the output out; one that it has is the one that was told."""
        if not output:
            return
        came = [item.get("type") for item in output]
        told = [item.type for _, item in sorted(self._items.items())]
        if came != told:
            raise OutputError(f"{kind}: expected output {told}, as it was told; came {came}")

    def interrupt(self) -> None:
        """Ends what is open as incomplete, with what was told of it."""
        for item in self._items.values():
            if not item.closed:
                item.closed = True
                self._output.close_item(item.output_index, item.incomplete())

    def _fail(self, event: Json) -> None:
        nested = event.get("error")
        told: Mapping[str, Any] = nested if isinstance(nested, Mapping) else event
        code, message, param = told.get("code"), str(told.get("message") or ""), told.get("param")
        self._error = {"code": code or SERVER_ERROR["code"], "message": message}
        error = {"type": told.get("type") or "server_error", "code": code, "message": message, "param": param}
        self._output.emit("error", code=code, message=message, param=param, error=error)

    def _added(self, event: Json) -> None:
        kind = "response.output_item.added"
        index, item = number(kind, event, "output_index"), _item(kind, event)
        if index in self._items:
            raise OutputError(f"{kind}: output_index {index} was added before")
        item_id = item.get("id")
        if not (isinstance(item_id, str) and ids.is_safe_id(item_id)):
            prefix = ITEM_PREFIXES.get(item["type"])
            item_id = None if prefix is None else self._output.new_item_id(prefix)
        added = self._stamped(item, item_id)
        self._items[index] = RawItem(item["type"], item_id, self._output.open_item(added), added)

    def _done(self, event: Json) -> None:
        kind = "response.output_item.done"
        known = self._known(kind, number(kind, event, "output_index"))
        item = _item(kind, event)
        if item["type"] != known.type:
            raise OutputError(f"{kind}: expected an item of type {known.type}; came {item['type']}")
        if known.open_parts:
            raise OutputError(f"{kind}: expected the `done` of part {min(known.open_parts)}")
        known.closed = True
        self._output.close_item(known.output_index, self._stamped(item, known.id))

    def _tell(self, kind: str, event: Json) -> None:
        """An event of an item that is open, or one that is of no item."""
        family, _, what = kind.removeprefix("response.").partition(".")
        if "output_index" not in event and (family in _OF_NO_ITEM or (what != "delta" and "item_id" not in event)):
            self._output.emit(kind, **event)
            return
        item = self._known(kind, number(kind, event, "output_index"))
        if what in ("added", "delta", "done"):
            item.follow(kind, family, what, event)
        if item.id is not None:
            event["item_id"] = item.id
        self._output.emit(kind, **{**event, "output_index": item.output_index})

    def _known(self, kind: str, index: int) -> RawItem:
        item = self._items.get(index)
        if item is None or item.closed:
            state = "not added" if item is None else "done"
            raise OutputError(f"{kind}: the item of output_index {index} is {state}")
        return item

    def _stamped(self, item: Json, item_id: str | None) -> Json:
        """The item with its id, and without the id of the other model's response."""
        if self._foreign_id is not None and item.get("response_id") == self._foreign_id:
            del item["response_id"]
        return item if item_id is None else {**item, "id": item_id}
