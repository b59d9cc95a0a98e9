"""The official OpenAI client against an agent process: what its users do, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai.types.responses import FunctionToolParam, Response
from pydantic import BaseModel

from agent.tests.blackbox.control import Control
from agent.tests.blackbox.process import AgentProcess, running
from agent.tests.blackbox.turns import eventually

TOOL: FunctionToolParam = {
    "type": "function",
    "name": "add",
    "description": "Adds two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "strict": True,
}


class Place(BaseModel):
    """What a structured answer is read into."""

    city: str
    visits: int


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    listening = Control(tmp_path_factory.mktemp("control") / "socket")
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def served(control: Control, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    variables = {"CONTROL_SOCKET": str(control.path)}
    with running(tmp_path_factory.mktemp("agent"), variables, "agent.tests.blackbox.agents.ours") as agent:
        yield agent


@pytest.fixture
def client(served: AgentProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def asynchronous(served: AgentProcess) -> AsyncIterator[openai.AsyncOpenAI]:
    address = f"http://127.0.0.1:{served.port}"
    async with openai.AsyncOpenAI(base_url=address, api_key="any", max_retries=0) as client:
        yield client


def ended(client: openai.OpenAI, response_id: str) -> Response:
    """The response, once it has ended."""

    def look() -> Response | None:
        response = client.responses.retrieve(response_id)
        return None if response.status in ("queued", "in_progress") else response

    return eventually(look, "the response ends")


def test_create(client: openai.OpenAI) -> None:
    response = client.responses.create(model="m", input="say hello; say  you", metadata={"a": "b"}, temperature=0.5)
    assert (response.status, response.output_text) == ("completed", "hello you")
    assert (response.model, response.metadata, response.temperature) == ("m", {"a": "b"}, 0.5)
    assert response.error is None
    assert response.incomplete_details is None
    assert response.created_at <= (response.completed_at or 0)


def test_create_from_items(client: openai.OpenAI) -> None:
    response = client.responses.create(
        model="m",
        instructions="Be brief.",
        input=[{"role": "user", "content": [{"type": "input_text", "text": "say a"}]}],
    )
    assert (response.output_text, response.instructions) == ("a", "Be brief.")


def test_stream(client: openai.OpenAI) -> None:
    with client.responses.create(model="m", input="say a; say b; call", stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["a", "b"]
    last = events[-1]
    assert last.type == "response.completed"
    assert [item.type for item in last.response.output] == ["message", "function_call"]


def test_stream_that_gathers_its_response(client: openai.OpenAI) -> None:
    with client.responses.stream(model="m", input="say a; say b") as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert texts == ["a", "ab"]
    assert (final.output_text, final.status) == ("ab", "completed")


def test_stream_of_a_failure(client: openai.OpenAI) -> None:
    with client.responses.create(model="m", input="say a; fail server_error It broke.", stream=True) as stream:
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.error is not None
    assert (last.response.error.code, last.response.error.message) == ("server_error", "It broke.")


def test_background_and_poll(client: openai.OpenAI, control: Control) -> None:
    response = client.responses.create(model="m", input="say a; gate polled; say b", background=True)
    gate = control.entered("polled")
    assert response.status in ("queued", "in_progress")
    assert client.responses.retrieve(response.id).status == "in_progress"
    gate.open()
    assert ended(client, response.id).output_text == "ab"
    gate.close()


def test_background_stream_taken_up_again(client: openai.OpenAI, control: Control) -> None:
    with client.responses.create(model="m", input="say a; gate again; say b", background=True, stream=True) as stream:
        first = next(iter(stream))
        assert first.type == "response.created"
    gate = control.entered("again")
    gate.open()
    with client.responses.retrieve(first.response.id, stream=True, starting_after=first.sequence_number) as stream:
        events = list(stream)
    assert events[0].sequence_number == first.sequence_number + 1
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == "ab"
    gate.close()


def test_cancel(client: openai.OpenAI, control: Control) -> None:
    response = client.responses.create(model="m", input="say a; gate cancelled; say b", background=True)
    gate = control.entered("cancelled")
    assert client.responses.cancel(response.id).status == "cancelled"
    gate.wait_until_left()
    assert client.responses.retrieve(response.id).status == "cancelled"
    gate.close()
    with pytest.raises(openai.BadRequestError, match="Cannot cancel a synchronous response"):
        client.responses.cancel(client.responses.create(model="m", input="say a").id)


def test_retrieve_and_delete(client: openai.OpenAI) -> None:
    made = client.responses.create(model="m", input="say a; reason why; call")
    assert client.responses.retrieve(made.id) == made
    client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError, match="not found") as caught:
        client.responses.retrieve(made.id)
    assert (caught.value.code, caught.value.param) == ("invalid_request_error", "response_id")
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)


def test_input_items_page_by_page(client: openai.OpenAI) -> None:
    made = client.responses.create(
        model="m", input=[{"role": "user", "content": f"say {number}"} for number in range(25)]
    )
    items = list(client.responses.input_items.list(made.id, limit=10, order="asc"))
    contents = [item.content[0] for item in items if item.type == "message"]
    assert [part.text for part in contents if part.type == "input_text"] == [f"say {number}" for number in range(25)]


def test_next_turn(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", input="say hello")
    second = client.responses.create(model="m", input="history", previous_response_id=first.id)
    assert second.output_text == "user:say hello|assistant:hello"
    assert second.previous_response_id == first.id


def test_tools(client: openai.OpenAI) -> None:
    first = client.responses.create(model="m", input="call", tools=[TOOL], tool_choice="auto")
    [call] = first.output
    assert call.type == "function_call"
    assert (call.name, call.arguments, call.status) == ("add", '{"a":1}', "completed")
    assert first.tools[0].type == "function"
    second = client.responses.create(
        model="m",
        previous_response_id=first.id,
        input=[
            {"type": "function_call_output", "call_id": call.call_id, "output": "2"},
            {"role": "user", "content": "history"},
        ],
    )
    assert second.output_text == "user:call|function_call:"


def test_output_items_of_other_kinds(client: openai.OpenAI) -> None:
    response = client.responses.create(model="m", input="reason because; refuse no; cite seen")
    reasoning, refusal, cited = response.output
    assert reasoning.type == "reasoning"
    assert reasoning.summary[0].text == "because"
    assert refusal.type == cited.type == "message"
    assert refusal.content[0].type == "refusal"
    assert cited.content[0].type == "output_text"
    assert cited.content[0].annotations[0].type == "url_citation"


def test_structured_answer(client: openai.OpenAI) -> None:
    answer = Place(city="Rome", visits=3).model_dump_json()
    parsed = client.responses.parse(model="m", input=f"say {answer}", text_format=Place)
    assert parsed.output_parsed == Place(city="Rome", visits=3)


def test_raw_answer(client: openai.OpenAI) -> None:
    raw = client.responses.with_raw_response.create(model="m", input="say a", extra_headers={"x-request-id": "r-1"})
    assert raw.headers["x-request-id"] == "r-1"
    assert raw.headers["x-agent-session-id"]
    assert raw.parse().output_text == "a"


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as failed:
        client.responses.create(model="m", input="raise")
    assert failed.value.code == "server_error"
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model="m", input="say a", background=True, store=False)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "background")
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="m", input="say a", previous_response_id="caresp_" + "0" * 50)


def test_compaction(client: openai.OpenAI) -> None:
    compacted = client.responses.compact(model="m", input=[{"role": "user", "content": "say a"}])
    assert compacted.object == "response.compaction"
    assert "compaction" in [item.type for item in compacted.output]


async def test_async_round_trip(asynchronous: openai.AsyncOpenAI) -> None:
    first = await asynchronous.responses.create(model="m", input="say hello")
    assert first.output_text == "hello"
    second = await asynchronous.responses.create(model="m", input="history", previous_response_id=first.id)
    assert second.output_text == "user:say hello|assistant:hello"
    assert (await asynchronous.responses.retrieve(first.id)).output_text == "hello"
    items = [item async for item in asynchronous.responses.input_items.list(second.id, order="asc")]
    assert [item.type for item in items] == ["message"] * 3
    await asynchronous.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await asynchronous.responses.retrieve(first.id)


async def test_async_stream(asynchronous: openai.AsyncOpenAI) -> None:
    async with await asynchronous.responses.create(model="m", input="say a; say b", stream=True) as stream:
        events = [event async for event in stream]
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["a", "b"]
    async with asynchronous.responses.stream(model="m", input="say a; say b") as gathered:
        assert (await gathered.get_final_response()).output_text == "ab"


async def test_async_background_and_cancel(asynchronous: openai.AsyncOpenAI, control: Control) -> None:
    made = await asynchronous.responses.create(model="m", input="say a; gate async; say b", background=True)
    gate = await asyncio.to_thread(control.entered, "async")
    assert (await asynchronous.responses.cancel(made.id)).status == "cancelled"
    gate.close()


async def test_many_at_once(asynchronous: openai.AsyncOpenAI) -> None:
    made = await asyncio.gather(
        *(asynchronous.responses.create(model="m", input=f"say {number}") for number in range(50))
    )
    assert [response.output_text for response in made] == [str(number) for number in range(50)]


def test_a_stream_that_is_left_stops_its_handler(client: openai.OpenAI, control: Control) -> None:
    with client.responses.create(model="m", input="say a; gate left", stream=True) as stream:
        next(iter(stream))
        gate = control.entered("left")
    gate.wait_until_left()
    gate.close()
