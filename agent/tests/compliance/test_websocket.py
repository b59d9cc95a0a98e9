"""The checks of the Open Responses suite over WebSocket, on the path `/responses` (contract section 8)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect

from agent.tests.blackbox.process import AgentProcess
from agent.tests.blackbox.wire import TERMINAL, TIMEOUT, new_id
from agent.tests.compliance.schemas import RESPONSE, SOCKET_ERROR, event_faults, faults
from agent.tests.compliance.test_http import CONVERSATION, TOOL, message


class Socket:
    """A connection in the WebSocket mode: one turn after the other."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def receive(self) -> Any:
        async with asyncio.timeout(TIMEOUT):
            received = await self.connection.recv()
        assert isinstance(received, str), "the events are text"
        return json.loads(received)

    async def turn(self, **fields: Any) -> list[Any]:
        """The events of a turn, up to the one that ends it; each is checked against its shape."""
        await self.connection.send(json.dumps({"type": "response.create", "model": "sample", **fields}))
        events = [await self.receive()]
        while events[-1]["type"] not in TERMINAL:
            events.append(await self.receive())
        for event in events:
            assert (faults(event, SOCKET_ERROR) if event["type"] == "error" else event_faults(event)) == []
        return events

    async def response(self, **fields: Any) -> Any:
        """The response of a turn that is completed."""
        events = await self.turn(**fields)
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
        assert events[-1]["type"] == "response.completed", events[-1]
        response = events[-1]["response"]
        assert faults(response, RESPONSE) == []
        return response

    async def refusal(self, **fields: Any) -> Any:
        """The error of a turn that is refused: the only message that comes."""
        [event] = await self.turn(**fields)
        assert event["type"] == "error", event
        assert 400 <= event["status"] < 500
        return event["error"]


@pytest.fixture
async def ws(sample: AgentProcess) -> AsyncIterator[Socket]:
    async with connect(f"ws://127.0.0.1:{sample.port}/responses", proxy=None) as connection:
        yield Socket(connection)


def text(response: Any) -> str:
    return str(response["output"][0]["content"][0]["text"])


async def test_a_turn(ws: Socket) -> None:
    response = await ws.response(input=[message("user", "Count to three.")])
    assert response["output"]


async def test_turns_one_after_the_other(ws: Socket) -> None:
    texts = [text(await ws.response(input=f"word {number}", store=False)) for number in range(5)]
    assert [words.split()[-1] for words in texts] == [str(number) for number in range(5)]


async def test_turns_that_are_sent_ahead_are_answered_in_order(ws: Socket) -> None:
    for number in range(3):
        body = {"type": "response.create", "model": "sample", "input": f"word {number}", "store": False}
        await ws.connection.send(json.dumps(body))
    said: list[str] = []
    while len(said) < 3:
        event = await ws.receive()
        if event["type"] == "response.completed":
            said.append(text(event["response"]).split()[-1])
    assert said == ["0", "1", "2"]


async def test_a_turn_that_is_not_stored_is_continued_on_its_connection(ws: Socket) -> None:
    first = await ws.response(input="The code word is cobalt.", store=False)
    second = await ws.response(input="Go on.", store=False, previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert "3 items" in text(second)
    third = await ws.response(input="Go on.", store=False, previous_response_id=second["id"])
    assert "5 items" in text(third)


async def test_a_turn_that_is_not_stored_is_gone_with_its_connection(sample: AgentProcess, ws: Socket) -> None:
    first = await ws.response(input="The code word is copper.", store=False)
    await ws.connection.close()
    async with connect(f"ws://127.0.0.1:{sample.port}/responses", proxy=None) as connection:
        again = Socket(connection)
        error = await again.refusal(input="Go on.", store=False, previous_response_id=first["id"])
        assert error["code"] == "previous_response_not_found"
        assert (await again.response(input="Begin again.", store=False))["status"] == "completed"


@pytest.mark.parametrize("previous", [new_id(), "resp_missing_1234567890", "x"])
@pytest.mark.parametrize("store", [True, False])
async def test_a_previous_response_nobody_knows(ws: Socket, previous: str, store: bool) -> None:
    error = await ws.refusal(input="Go on.", store=store, previous_response_id=previous)
    assert error["code"] == "previous_response_not_found"
    # The connection is none the worse.
    assert (await ws.response(input="Begin.", store=False))["status"] == "completed"


async def test_a_continuation_that_fails_evicts_the_turn_before(ws: Socket) -> None:
    first = await ws.response(input="The code word is ember.", store=False)
    output = {"type": "function_call_output", "call_id": "nobody's", "output": "3"}
    failed = await ws.turn(input=[output], store=False, previous_response_id=first["id"])
    assert failed[-1]["type"] in ("response.failed", "error")
    error = await ws.refusal(input="Go on.", store=False, previous_response_id=first["id"])
    assert error["code"] == "previous_response_not_found"


async def test_a_stored_turn_is_continued_on_another_connection(sample: AgentProcess, ws: Socket) -> None:
    first = await ws.response(input="The code word is iron.")
    await ws.connection.close()
    async with connect(f"ws://127.0.0.1:{sample.port}/responses", proxy=None) as connection:
        second = await Socket(connection).response(input="Go on.", previous_response_id=first["id"])
        assert "3 items" in text(second)


async def test_a_stored_turn_is_read_over_http(sample: AgentProcess, ws: Socket) -> None:
    response = await ws.response(input="Greet me.")
    assert sample.client.get(f"/responses/{response['id']}").json == response


async def test_a_turn_that_is_not_stored_is_not_read_over_http(sample: AgentProcess, ws: Socket) -> None:
    response = await ws.response(input="Greet me.", store=False)
    assert sample.client.get(f"/responses/{response['id']}").status == 404


async def test_a_compacted_conversation_begins_a_new_chain(sample: AgentProcess, ws: Socket) -> None:
    body = {"model": "sample", "input": CONVERSATION}
    compacted = await asyncio.to_thread(sample.client.post, "/responses/compact", body)
    asked = [*compacted.json["output"], message("user", "Go on from here.")]
    response = await ws.response(input=asked, store=False, tools=[])
    assert response["previous_response_id"] is None


async def test_a_tool_is_called(ws: Socket) -> None:
    first = await ws.response(input="What time is it?", tools=[TOOL], store=False)
    [call] = [item for item in first["output"] if item["type"] == "function_call"]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "noon"}
    second = await ws.response(input=[output, message("user", "So?")], store=False, previous_response_id=first["id"])
    assert second["output"][0]["type"] == "message"


@pytest.mark.parametrize(
    "sent",
    ["", "x", "[]", "{}", "null", '{"type":"response.cancel"}', '{"type":1}', '{"type":"response.create","input":1}'],
)
async def test_a_message_that_makes_no_sense_is_refused(ws: Socket, sent: str) -> None:
    await ws.connection.send(sent)
    event = await ws.receive()
    assert faults(event, SOCKET_ERROR) == []
    assert 400 <= event["status"] < 500
    assert (await ws.response(input="Begin.", store=False))["status"] == "completed"


async def test_many_connections_do_not_see_each_other(sample: AgentProcess) -> None:
    async def talk(number: int) -> str:
        async with connect(f"ws://127.0.0.1:{sample.port}/responses", proxy=None) as connection:
            socket = Socket(connection)
            first = await socket.response(input=f"word {number}", store=False)
            second = await socket.response(input=f"again {number}", store=False, previous_response_id=first["id"])
            return text(second)

    texts = await asyncio.gather(*(talk(number) for number in range(10)))
    assert [words.split()[-2:] for words in texts] == [["again", str(number)] for number in range(10)]
    assert all("3 items" in words for words in texts)
