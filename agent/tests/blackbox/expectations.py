"""What each operation must answer in each state of a response: contract sections 4.7 to 4.10 as one table."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.tests.blackbox.turns import Mode
from agent.tests.blackbox.wire import TERMINAL, Answer, Client, Event


class State(enum.StrEnum):
    """A response as its caller sees it."""

    GONE = "unknown, deleted or never stored"
    FOREGROUND_RUNNING = "stored, sync or streamed, in flight"
    BACKGROUND_RUNNING = "background in flight"
    STREAMED_RUNNING = "background and streamed, in flight"
    FOREGROUND_ENDED = "sync or streamed, ended"
    BACKGROUND_ENDED = "background, ended"
    STREAMED_ENDED = "background and streamed, ended"
    BACKGROUND_CANCELLED = "background, cancelled"
    STREAMED_CANCELLED = "background and streamed, cancelled"


def state_in_flight(mode: Mode) -> State:
    if not mode.store:
        return State.GONE
    if not mode.background:
        return State.FOREGROUND_RUNNING
    return State.STREAMED_RUNNING if mode.stream else State.BACKGROUND_RUNNING


def state_ended(mode: Mode) -> State:
    if not mode.store:
        return State.GONE
    if not mode.background:
        return State.FOREGROUND_ENDED
    return State.STREAMED_ENDED if mode.stream else State.BACKGROUND_ENDED


@dataclass(frozen=True)
class Operation:
    """A request about a response. `{id}` in its path is the response's."""

    name: str
    method: str
    path: str

    def __str__(self) -> str:
        return self.name

    def run(self, client: Client, response_id: str) -> Answer:
        return client.call(self.method, self.path.format(id=response_id))


GET = Operation("get", "GET", "/responses/{id}")
REPLAY = Operation("replay", "GET", "/responses/{id}?stream=true")
CANCEL = Operation("cancel", "POST", "/responses/{id}/cancel")
DELETE = Operation("delete", "DELETE", "/responses/{id}")
INPUT_ITEMS = Operation("input-items", "GET", "/responses/{id}/input_items")
OPERATIONS = (GET, REPLAY, CANCEL, DELETE, INPUT_ITEMS)


@dataclass(frozen=True)
class Refusal:
    """An answer that says no. `{id}` in its message is the response's."""

    status: int
    message: str
    param: str | None
    code: str | None = None

    def check(self, answer: Answer, response_id: str) -> None:
        assert answer.status == self.status, answer
        error = answer.error
        assert error["message"] == self.message.format(id=response_id)
        assert error["param"] == self.param
        assert error["type"] == "invalid_request_error"
        if self.code:
            assert error["code"] == self.code
        assert answer.headers["x-platform-error-source"] == "user"
        assert answer.headers["content-type"].startswith("application/json")


@dataclass(frozen=True)
class Success:
    """An answer that says yes; `status` is that of the response in it."""

    status: str | None = None


NOT_FOUND = Refusal(404, "Response with id '{id}' not found.", "response_id", "invalid_request_error")
NOT_BACKGROUND = Refusal(
    400,
    "This response cannot be streamed because it was not created with background=true.",
    "stream",
    "invalid_request_error",
)
NOT_STREAMED = Refusal(
    400,
    "This response cannot be streamed because it was not created with stream=true.",
    "stream",
    "invalid_request_error",
)
NO_STREAM_ANY_MORE = replace(
    NOT_STREAMED,
    message="This response cannot be streamed because it was not created with stream=true or the stream TTL has expired.",
)
CANCEL_SYNCHRONOUS = Refusal(400, "Cannot cancel a synchronous response.", "response_id")
DELETE_IN_FLIGHT = Refusal(400, "Cannot delete an in-flight response.", "response_id")

_REPLAYED = Success()
_EXPECTED: Mapping[State, tuple[Refusal | Success, ...]] = {
    # In the order of OPERATIONS; the refusal to cancel what has ended names its state and is filled in below.
    State.GONE: (NOT_FOUND,) * 5,
    State.FOREGROUND_RUNNING: (NOT_FOUND, NOT_BACKGROUND, NOT_FOUND, NOT_FOUND, NOT_FOUND),
    State.BACKGROUND_RUNNING: (
        Success("in_progress"), NOT_STREAMED, Success("cancelled"), DELETE_IN_FLIGHT, Success(),
    ),
    State.STREAMED_RUNNING: (Success("in_progress"), _REPLAYED, Success("cancelled"), DELETE_IN_FLIGHT, Success()),
    State.FOREGROUND_ENDED: (Success(), NOT_BACKGROUND, CANCEL_SYNCHRONOUS, Success(), Success()),
    State.BACKGROUND_ENDED: (Success(), NO_STREAM_ANY_MORE, CANCEL_SYNCHRONOUS, Success(), Success()),
    State.STREAMED_ENDED: (Success(), _REPLAYED, CANCEL_SYNCHRONOUS, Success(), Success()),
    State.BACKGROUND_CANCELLED: (
        Success("cancelled"), NO_STREAM_ANY_MORE, Success("cancelled"), Success(), Success(),
    ),
    State.STREAMED_CANCELLED: (
        Success("cancelled"), NO_STREAM_ANY_MORE, Success("cancelled"), Success(), Success(),
    ),
}  # fmt: skip
_CANNOT_CANCEL = {
    "completed": "Cannot cancel a completed response.",
    "failed": "Cannot cancel a failed response.",
    "incomplete": "Cannot cancel a response in terminal state.",
}


def expected(operation: Operation, state: State, status: str = "") -> Refusal | Success:
    """What the operation must answer; `status` is the response's when it has ended."""
    if operation is CANCEL and state in (State.BACKGROUND_ENDED, State.STREAMED_ENDED):
        return replace(CANCEL_SYNCHRONOUS, message=_CANNOT_CANCEL[status])
    return _EXPECTED[state][OPERATIONS.index(operation)]


def state_after(operation: Operation, state: State) -> State:
    """The state in which an operation leaves a response."""
    if operation is CANCEL and state is State.BACKGROUND_RUNNING:
        return State.BACKGROUND_CANCELLED
    if operation is CANCEL and state is State.STREAMED_RUNNING:
        return State.STREAMED_CANCELLED
    if operation is DELETE and isinstance(expected(DELETE, state), Success):
        return State.GONE
    return state


def check(answer: Answer, operation: Operation, response_id: str, wanted: Refusal | Success, status: str = "") -> None:
    """Fails unless the answer is the one that was wanted."""
    if isinstance(wanted, Refusal):
        wanted.check(answer, response_id)
        return
    assert answer.status == 200, answer
    assert "x-platform-error-source" not in answer.headers
    if operation is REPLAY:
        check_replay(answer, response_id)
    elif operation is DELETE:
        assert answer.json == {"id": response_id, "object": "response", "deleted": True}
    elif operation is INPUT_ITEMS:
        check_page(answer)
    else:
        check_response(answer.json, response_id, wanted.status or status)


def check_response(response: Any, response_id: str, status: str) -> None:
    """A response object as contract section 4.4 has it."""
    assert response["object"] == "response"
    assert response["id"] == response["response_id"] == response_id
    assert response["status"] == status
    assert response["model"] == "m"
    assert isinstance(response["created_at"], int | float)
    assert response["agent_reference"]["type"] == "agent_reference"
    assert response["agent_session_id"]
    assert response["parallel_tool_calls"] in (True, False)
    assert (response.get("completed_at") is not None) == (status == "completed")
    assert (response.get("error") is not None) == (status == "failed")
    assert (response.get("incomplete_details") is not None) == (status == "incomplete")
    if status == "cancelled":
        assert response["output"] == []
    if response.get("error") is not None:
        assert set(response["error"]) == {"code", "message"}
    for item in response["output"]:
        assert item["response_id"] == response_id


def check_page(answer: Answer) -> list[Any]:
    """A page of items as contract section 4.1 has it; gives the items."""
    page = answer.json
    data: list[Any] = page["data"]
    assert page["object"] == "list"
    assert page["has_more"] in (True, False)
    if data:
        assert (page["first_id"], page["last_id"]) == (data[0]["id"], data[-1]["id"])
    return data


def check_replay(answer: Answer, response_id: str, after: int = -1) -> list[Event]:
    """Events after a number, up to the one that ends the response."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = answer.events
    check_events(events, after + 1, response_id)
    return events


def check_events(events: list[Event], first_number: int, response_id: str) -> None:
    """Numbered without a gap, and exactly one end (contract section 4.6)."""
    numbers = [event.data["sequence_number"] for event in events]
    assert numbers == list(range(first_number, first_number + len(events)))
    assert [index for index, event in enumerate(events) if event.kind in TERMINAL] == [len(events) - 1]
    assert {event.response["id"] for event in events if "response" in event.data} <= {response_id}
