"""Turns of an agent at a known moment: in which mode they were asked for, and how far they are."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent.tests.blackbox.control import Control, Gate
from agent.tests.blackbox.wire import TERMINAL, Answer, Client, Event, Exchange, new_id

T = TypeVar("T")
_numbers = itertools.count()


@dataclass(frozen=True)
class Mode:
    """How a response is asked for (contract section 4.7)."""

    name: str
    stream: bool = False
    background: bool = False
    store: bool = True

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of the request; those that are as by default are left out."""
        fields: dict[str, Any] = {"stream": True} if self.stream else {}
        if self.background:
            fields["background"] = True
        if not self.store:
            fields["store"] = False
        return fields

    def __str__(self) -> str:
        return self.name


SYNC = Mode("sync")
SYNC_UNSTORED = Mode("sync-unstored", store=False)
STREAM = Mode("stream", stream=True)
STREAM_UNSTORED = Mode("stream-unstored", stream=True, store=False)
BACKGROUND = Mode("background", background=True)
BACKGROUND_STREAM = Mode("background-stream", stream=True, background=True)
MODES = (SYNC, SYNC_UNSTORED, STREAM, STREAM_UNSTORED, BACKGROUND, BACKGROUND_STREAM)


def eventually(look: Callable[[], T | None], what: str, within: float = 15) -> T:
    """What `look` gives as soon as that is not None. Fails after `within` seconds."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        seen = look()
        if seen is not None:
            return seen
        time.sleep(0.005)
    raise AssertionError(f"not within {within} s: {what}")


@dataclass
class Turn:
    """A response that was asked for."""

    client: Client
    mode: Mode
    id: str
    script: str
    exchange: Exchange
    gate: Gate | None = None
    seen: list[Event] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"/responses/{self.id}"

    def read_until(self, kind: str) -> Event:
        """Reads the live stream up to the first event of a kind."""
        for event in self.exchange.events():
            self.seen.append(event)
            if event.kind == kind:
                return event
        raise AssertionError(f"the stream ended without {kind}: {[event.kind for event in self.seen]}")

    def rest(self) -> list[Event]:
        """Reads the live stream to its end; gives all of it."""
        self.seen += self.exchange.events()
        return self.seen

    def final(self) -> Any:
        """Waits for the end of the turn, in the way its mode has; gives the response as it is then."""
        if self.mode.stream:
            events = self.rest()
            assert events, "the stream is empty"
            assert events[-1].kind in TERMINAL, [event.kind for event in events]
            return events[-1].data.get("response")
        if self.mode.background:
            return self.poll().json
        return self.exchange.answer().json

    def poll(self) -> Answer:
        """Waits until the response is there and has ended."""

        def look() -> Answer | None:
            answer = self.client.get(self.path)
            ended = answer.status == 200 and answer.json["status"] not in ("queued", "in_progress")
            return answer if ended else None

        return eventually(look, f"{self.id} ends")


@contextlib.contextmanager
def asked(
    client: Client, mode: Mode, script: str, headers: Mapping[str, str] | None = None, **fields: Any
) -> Iterator[Turn]:
    """A response that was asked for under an id of the test's choice; nothing was read of the answer."""
    response_id = new_id()
    body = {"model": "m", "input": script, **mode.fields, **fields}
    exchange = client.send("POST", "/responses", body, {"x-agent-response-id": response_id, **(headers or {})})
    # An agent that takes up connections one by one has this one before any that the test makes after it.
    with exchange:
        turn = Turn(client, mode, response_id, script, exchange)
        if mode.background and not mode.stream:
            assert exchange.response.status == 200
        elif mode.stream:
            turn.read_until("response.created")
        yield turn


@dataclass(frozen=True)
class Moment:
    """How far the handler is: `script` leads there and stops at the gate `{gate}`, and then says " b"."""

    name: str
    script: str
    items_before: int

    def __str__(self) -> str:
        return self.name


MOMENTS = (
    Moment("waiting", "gate {gate}; say a; say b", 0),
    Moment("writing", "say a; gate {gate}; say b", 0),
    Moment("between-items", "call; gate {gate}; say b", 1),
)


@contextlib.contextmanager
def in_flight(
    client: Client,
    control: Control,
    mode: Mode,
    moment: Moment,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> Iterator[Turn]:
    """A turn whose handler waits at that moment. It is let go at the end in any case."""
    name = f"gate-{next(_numbers)}"
    script = moment.script.format(gate=name)
    if "input" in fields:
        fields["input"] = fields["input"](script)
    with asked(client, mode, script, headers, **fields) as turn:
        turn.gate = control.entered(name)
        try:
            yield turn
        finally:
            turn.gate.open()
            turn.gate.close()


@dataclass(frozen=True)
class Ending:
    """How a turn ended: its script, and the status it has then."""

    name: str
    script: str
    status: str

    def __str__(self) -> str:
        return self.name


COMPLETED = Ending("completed", "say a; say b", "completed")
FAILED = Ending("failed", "call; fail broken It broke.", "failed")
INCOMPLETE = Ending("incomplete", "say a; incomplete max_output_tokens", "incomplete")
RAISED = Ending("raised", "call; raise", "failed")
ENDINGS = (COMPLETED, FAILED, INCOMPLETE, RAISED)


def ended(client: Client, mode: Mode, ending: Ending, headers: Mapping[str, str] | None = None, **fields: Any) -> Turn:
    """A turn that has ended in that way, and whose end can be seen wherever it can be."""
    with asked(client, mode, ending.script, headers, **fields) as turn:
        final = turn.final()
        assert final["status"] == ending.status, final
        return turn
