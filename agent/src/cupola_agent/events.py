"""Builds the events of one response, and with them the response object they describe (contract 4.5, 4.6).

The builder numbers the events without gaps. Items are replaced, never changed, and every event that carries
the response carries a copy of its own, so that an event stays what it was when it was sent.
"""

import time
from typing import Any

from cupola_agent import ids, jsons
from cupola_agent.objects import Json, output_message, output_text

Event = dict[str, Any]

_SERVER_ERROR = {"code": "server_error", "message": "An internal server error occurred."}


class ResponseEvents:
    """The events of one response, in the order its methods are called."""

    def __init__(self, response: Json, item_reference: Json | None) -> None:
        self._response = response
        self._item_reference = item_reference
        self._partition = ids.partition_of(response["id"]) or ids.new_partition()
        self._next_number = 0
        self._items_added = 0

    def event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._next_number, **fields}
        self._next_number += 1
        return event

    def created(self) -> Event:
        return self._lifecycle("response.created")

    def in_progress(self) -> Event:
        return self._lifecycle("response.in_progress")

    def message(self) -> "MessageEvents":
        """Starts the next output item, a message of the assistant."""
        index = self._items_added
        self._items_added += 1
        return MessageEvents(self, ids.new_id("msg", self._partition), index)

    def completed(self) -> Event:
        self._response |= {"status": "completed", "completed_at": int(time.time())}
        return self._lifecycle("response.completed")

    def failed(self) -> Event:
        """Ends the response; items that were done stay in its output."""
        self._response |= {"status": "failed", "error": _SERVER_ERROR}
        return self._lifecycle("response.failed")

    def cancelled(self) -> Json:
        """The response of a caller who left: there is nobody to send an event to."""
        self._response |= {"status": "cancelled", "output": []}
        return self._snapshot()

    def new_message(self, item_id: str, status: str, content: list[Json]) -> Json:
        return output_message(item_id, status, content, self._response["id"], self._item_reference)

    def finish_item(self, item: Json) -> None:
        self._response["output"] = [*self._response["output"], item]

    def _lifecycle(self, kind: str) -> Event:
        return self.event(kind, response=self._snapshot())

    def _snapshot(self) -> Json:
        return dict(self._response)


class MessageEvents:
    """The events of one message with one part of text, in the order of the methods."""

    def __init__(self, response: ResponseEvents, item_id: str, output_index: int) -> None:
        self._response = response
        self._item_id = item_id
        self._output_index = output_index
        self._pieces: list[str] = []

    def added(self) -> tuple[Event, Event]:
        item = self._response.new_message(self._item_id, "in_progress", [])
        return (
            self._response.event("response.output_item.added", output_index=self._output_index, item=item),
            self._part_event("response.content_part.added", part=output_text("")),
        )

    def delta(self, text: str) -> Event:
        self._pieces.append(text)
        return self._part_event("response.output_text.delta", delta=text, logprobs=[])

    def done(self) -> tuple[Event, Event, Event]:
        text = "".join(self._pieces)
        part = output_text(text)
        item = self._response.new_message(self._item_id, "completed", [part])
        self._response.finish_item(item)
        return (
            self._part_event("response.output_text.done", text=text, logprobs=[]),
            self._part_event("response.content_part.done", part=part),
            self._response.event("response.output_item.done", output_index=self._output_index, item=item),
        )

    def _part_event(self, kind: str, **fields: Any) -> Event:
        return self._response.event(
            kind, item_id=self._item_id, output_index=self._output_index, content_index=0, **fields
        )


def sse_frame(event: Event) -> bytes:
    """One server-sent event, to be sent in one piece: some clients keep no state between network chunks."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), jsons.encode(event))
