"""What a caller sees of items that a handler left open."""

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from cupola_agent import Agent, ResponseStream, items
from cupola_agent.exchange import HeaderPairs

Json = dict[str, Any]


class Posted:
    """One POST to /responses, in memory."""

    method = "POST"
    path = "/responses"
    query_string = b""
    disconnected = False

    def __init__(self, **fields: Any) -> None:
        self._body = json.dumps({"input": "x", **fields}).encode()
        self.headers = {"content-type": "application/json"}
        self.status = 0
        self.answer = b""
        self.answered = False

    async def body(self) -> bytes:
        return self._body

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield self._body

    def respond(self, status: int, headers: HeaderPairs, body: bytes) -> None:
        self.status, self.answer, self.answered = status, body, True

    def start(self, status: int, headers: HeaderPairs) -> None:
        self.status, self.answered = status, True

    def write(self, data: bytes) -> None:
        self.answer += data

    async def drained(self) -> None: ...

    def finish(self) -> None: ...

    def abort(self) -> None: ...

    def on_disconnect(self, callback: Callable[[], None]) -> None: ...


async def said_by(handler: Any, *, stream: bool) -> tuple[list[str], Json]:
    """The names of the events, and the response in its last state."""
    agent = Agent()
    agent.responses(handler)
    await agent.start()
    posted = Posted(stream=stream, store=False)
    try:
        await agent.answer(posted)
    finally:
        await agent.stop()
    assert posted.status == 200
    if not stream:
        return [], json.loads(posted.answer)
    frames = [frame.split(b"\n") for frame in posted.answer.split(b"\n\n") if frame]
    events = [json.loads(frame[1].removeprefix(b"data: ")) for frame in frames]
    return [event["type"].removeprefix("response.") for event in events], events[-1]["response"]


async def forgets(stream: ResponseStream) -> None:
    stream.message().text("half")


async def raises(stream: ResponseStream) -> None:
    stream.text("half")
    raise ValueError


async def raises_inside(stream: ResponseStream) -> None:
    with stream.message() as message:
        message.text("half")
        raise ValueError


async def yields_and_raises() -> AsyncGenerator[str, None]:
    yield "half"
    raise ValueError


async def passes_events_and_raises() -> AsyncGenerator[Json, None]:
    item = {"type": "message", "role": "assistant", "status": "in_progress", "content": []}
    yield {"type": "response.created", "response": {"status": "in_progress"}}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    yield {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "half"}
    raise ValueError


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("handler", [forgets, raises, raises_inside, yields_and_raises, passes_events_and_raises])
async def test_an_item_left_open_ends_as_incomplete_in_a_failed_response(handler: Any, stream: bool) -> None:
    names, response = await said_by(handler, stream=stream)
    assert response["status"] == "failed"
    (item,) = response["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "half")
    if stream:
        assert names[-2:] == ["output_item.done", "failed"]
        assert names.count("output_item.done") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_the_last_text_of_a_stream_needs_no_end(stream: bool) -> None:
    async def handler(stream: ResponseStream) -> None:
        stream.text("a")
        stream.item(items.FunctionCall("f"))
        stream.text("b")

    _, response = await said_by(handler, stream=stream)
    assert response["status"] == "completed"
    assert [item["type"] for item in response["output"]] == ["message", "function_call", "message"]
    assert {item["status"] for item in response["output"]} == {"completed"}
