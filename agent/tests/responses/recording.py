"""An output that records its events, and what must hold for any of them."""

import json
from typing import Any

from cupola_agent.responses.log import EventLog
from cupola_agent.responses.objects import new_response
from cupola_agent.responses.output import Output

RESPONSE_ID = "caresp_" + "0123456789abcdef" + "00" + "A" * 32

Json = dict[str, Any]


class Recording:
    def __init__(self) -> None:
        self._log = EventLog()
        self.output = Output(response(), self._log.append)

    @property
    def events(self) -> list[Json]:
        events = []
        for frame in self._log.read(0):
            name, data, *end = frame.split(b"\n")
            assert end == [b"", b""]
            event = json.loads(data.removeprefix(b"data: "))
            assert name == b"event: " + event["type"].encode()
            events.append(event)
        return events

    @property
    def names(self) -> list[str]:
        return [event["type"].removeprefix("response.") for event in self.events]

    def told(self, name: str) -> list[Json]:
        """The events of this name, without what all have."""
        return [
            {key: value for key, value in event.items() if key not in ("type", "sequence_number")}
            for event in self.events
            if event["type"] == f"response.{name}"
        ]

    def check(self) -> None:
        """Numbers without gaps; every item and part that was opened is done once; the output is what was done."""
        assert [event["sequence_number"] for event in self.events] == list(range(len(self.events)))
        open_items: dict[int, Any] = {}
        open_parts: set[tuple[int, str, int]] = set()
        done: dict[int, Json] = {}
        for event in self.events:
            family, _, what = event["type"].removeprefix("response.").rpartition(".")
            if family == "output_item":
                index = event["output_index"]
                if what == "added":
                    assert index == len(open_items) + len(done)
                    open_items[index] = event["item"].get("id")
                else:
                    assert open_items.pop(index) == event["item"].get("id")
                    assert not [part for part in open_parts if part[0] == index]
                    done[index] = event["item"]
            elif "output_index" in event:
                assert open_items[event["output_index"]] == event["item_id"]
                if family in ("content_part", "reasoning_summary_part"):
                    name = "content_index" if family == "content_part" else "summary_index"
                    part = (event["output_index"], name, event[name])
                    (open_parts.add if what == "added" else open_parts.remove)(part)
        assert not open_items
        assert not open_parts
        assert [done[index] for index in sorted(done)] == json.loads(json.dumps(self.output.response["output"]))


def response(**request: Any) -> Json:
    return new_response(request, response_id=RESPONSE_ID, session_id="session", created_at=1)


def silent_output() -> Output:
    """One of which nobody will ever see the events."""
    return Output(response(), None)
