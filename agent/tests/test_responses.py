# ruff: noqa: A002
import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
from cupola_agent import Agent, ResponseContext
from cupola_agent.ids import is_response_id, new_id, new_partition, partition_of
from cupola_agent.stores.memory import MemoryResponseStore
from cupola_agent.testing import TestClient, TestResponse

TEXT_CHAIN = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def echo(**environ: str) -> TestClient:
    agent = Agent(environ=environ, store=MemoryResponseStore)

    @agent.responses
    async def reply(input: str) -> AsyncIterator[str]:
        yield "Echo: "
        yield input

    return TestClient(agent)


def failing(*pieces: str) -> TestClient:
    agent = Agent(environ={}, store=MemoryResponseStore)

    @agent.responses
    def reply() -> Iterator[str]:
        yield from pieces
        raise LookupError("secret detail")

    return TestClient(agent)


def new_response_id() -> str:
    return new_id("caresp", new_partition())


def assert_well_numbered(answer: TestResponse) -> list[str]:
    events = answer.events()
    assert [data["sequence_number"] for _, data in events] == list(range(len(events)))
    assert [kind for kind, _ in events] == [data["type"] for _, data in events]
    terminal = {"response.completed", "response.failed", "response.incomplete", "error"}
    assert [index for index, (kind, _) in enumerate(events) if kind in terminal] == [len(events) - 1]
    return [kind for kind, _ in events]


async def test_a_plain_answer_is_a_full_response_object() -> None:
    answer = await echo().post(
        "/responses", json={"input": "hi", "model": "m", "metadata": {"k": "v"}, "temperature": 0.5}
    )
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["object"] == "response"
    assert body["status"] == "completed"
    assert body["completed_at"] >= body["created_at"]
    assert (body["model"], body["metadata"], body["temperature"]) == ("m", {"k": "v"}, 0.5)
    assert body["response_id"] == body["id"]
    assert body["agent_reference"] == {"type": "agent_reference", "name": "server-default-agent"}
    assert body["agent_session_id"] == answer.headers["x-agent-session-id"]
    [item] = body["output"]
    assert item["content"] == [{"type": "output_text", "text": "Echo: hi", "annotations": [], "logprobs": []}]
    assert (item["role"], item["status"], item["response_id"]) == ("assistant", "completed", body["id"])
    # What Open Responses requires of every response object (contract section 8).
    required = (
        "id object created_at completed_at status incomplete_details model previous_response_id instructions "
        "output error tools tool_choice truncation parallel_tool_calls text top_p presence_penalty "
        "frequency_penalty top_logprobs temperature reasoning usage max_output_tokens max_tool_calls store "
        "background service_tier metadata safety_identifier prompt_cache_key"
    )
    assert set(body) >= set(required.split())


async def test_a_stream_has_the_chain_of_a_text() -> None:
    answer = await echo().post("/responses", json={"input": "hi", "stream": True})
    assert assert_well_numbered(answer) == TEXT_CHAIN
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"
    events = answer.events()
    assert all(chunk.endswith(b"\n\n") for chunk in answer.chunks), "no frame is split"
    created, completed = events[0][1]["response"], events[-1][1]["response"]
    assert (created["status"], created["output"]) == ("in_progress", [])
    assert (completed["status"], completed["output"]) == ("completed", [events[-2][1]["item"]])
    item_id = completed["output"][0]["id"]
    assert partition_of(item_id) == partition_of(completed["id"])
    assert {data["item_id"] for kind, data in events if "text" in kind or "part" in kind} == {item_id}
    assert [data["delta"] for kind, data in events if kind.endswith("delta")] == ["Echo: ", "hi"]


async def test_the_stream_starts_before_the_handler_has_anything_to_say() -> None:
    agent = Agent(environ={}, store=MemoryResponseStore)
    go = asyncio.Event()

    @agent.responses
    async def reply() -> str:
        await go.wait()
        return "now"

    async with TestClient(agent).stream("POST", "/responses", json={"stream": True}) as stream:
        events = stream.events()
        assert [(await anext(events))[0] for _ in range(2)] == ["response.created", "response.in_progress"]
        go.set()
        assert [kind async for kind, _ in events][-1] == "response.completed"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_handler_that_gives_nothing(stream: bool) -> None:
    agent = Agent(environ={}, store=MemoryResponseStore)
    agent.responses(lambda: None)
    answer = await TestClient(agent).post("/responses", json={"stream": stream})
    if stream:
        assert assert_well_numbered(answer) == [
            "response.created", "response.in_progress", "response.completed",
        ]  # fmt: skip
    body = answer.events()[-1][1]["response"] if stream else answer.json()
    assert (body["status"], body["output"]) == ("completed", [])


@pytest.mark.parametrize("pieces", [(), ("part",)])
async def test_a_failure_in_a_stream(pieces: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    client = failing(*pieces)
    answer = await client.post("/responses", json={"stream": True})
    assert answer.status == 200
    assert assert_well_numbered(answer)[-1] == "response.failed"
    response = answer.events()[-1][1]["response"]
    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "An internal server error occurred."}
    said = [(item["status"], item["content"][0]["text"]) for item in response["output"]]
    assert said == [("incomplete", piece) for piece in pieces], "what was said stays"
    assert "secret" not in answer.text
    assert "LookupError: secret detail" in caplog.text
    assert (await client.get(f"/responses/{response['id']}")).json() == response


async def test_a_failure_before_the_first_piece_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    client, response_id = failing(), new_response_id()
    answer = await client.post("/responses", json={}, headers={"x-agent-response-id": response_id})
    assert answer.status == 500
    assert answer.json() == {
        "error": {
            "message": "internal server error", "type": "server_error", "code": "server_error", "param": None,
        }
    }  # fmt: skip
    assert answer.headers["x-platform-error-source"] == "upstream"
    assert answer.headers["x-agent-session-id"]
    assert "secret detail" in caplog.text
    assert (await client.get(f"/responses/{response_id}")).status == 404


async def test_a_failure_after_a_piece_is_a_failed_response() -> None:
    answer = await failing("part").post("/responses", json={})
    assert (answer.status, answer.json()["status"]) == (200, "failed")
    assert "secret" not in answer.text


async def test_a_handler_that_does_not_give_text_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(environ={}, store=MemoryResponseStore)
    agent.responses(lambda: 7)
    assert (await TestClient(agent).post("/responses", json={})).status == 500
    assert "not int" in caplog.text


async def test_get_and_delete() -> None:
    client = echo()
    created = (await client.post("/responses", json={"input": "hi"})).json()
    path = f"/responses/{created['id']}"
    assert (await client.get(path)).json() == created
    replay = await client.get(f"{path}?stream=true")
    assert (replay.status, replay.json()["error"]["param"]) == (400, "stream")
    deleted = await client.delete(path)
    assert deleted.json() == {"id": created["id"], "object": "response", "deleted": True}
    for gone in (await client.get(path), await client.delete(path)):
        assert gone.status == 404
        assert gone.json()["error"] == {
            "message": f"Response with id '{created['id']}' not found.",
            "type": "invalid_request_error", "code": "invalid_request_error", "param": "response_id",
        }  # fmt: skip
        assert gone.headers["x-platform-error-source"] == "user"


async def test_a_malformed_id_in_the_path() -> None:
    answer = await echo().get("/responses/resp_1")
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["param"]) == (400, "invalid_parameters", "responseId{resp_1}")


async def test_store_false_leaves_nothing() -> None:
    client = echo()
    created = (await client.post("/responses", json={"input": "hi", "store": False})).json()
    assert created["store"] is False
    assert (await client.get(f"/responses/{created['id']}")).status == 404


async def test_a_response_is_seen_by_its_user_only() -> None:
    client = echo()
    ada = {"x-agent-user-id": "ada"}
    path = f"/responses/{(await client.post('/responses', json={}, headers=ada)).json()['id']}"
    assert (await client.get(path, headers={"x-agent-user-id": "eve"})).status == 404
    assert (await client.delete(path)).status == 404
    assert (await client.get(path, headers=ada)).status == 200


async def test_the_id_comes_from_the_header_then_the_body_then_the_chain() -> None:
    client = echo()
    first, second = new_response_id(), new_response_id()
    header = {"x-agent-response-id": first}
    assert (await client.post("/responses", json={"response_id": second}, headers=header)).json()["id"] == first
    assert (await client.post("/responses", json={"response_id": second})).json()["id"] == second
    chained = (await client.post("/responses", json={"previous_response_id": first})).json()
    assert chained["id"] != first
    assert partition_of(chained["id"]) == partition_of(first)
    assert chained["previous_response_id"] == first
    empty = await client.post("/responses", json={}, headers={"x-agent-response-id": ""})
    assert is_response_id(empty.json()["id"])


async def test_an_id_is_used_once() -> None:
    client, header = echo(), {"x-agent-response-id": new_response_id()}
    assert (await client.post("/responses", json={}, headers=header)).status == 200
    again = await client.post("/responses", json={}, headers={**header, "x-agent-user-id": "eve"})
    assert (again.status, again.json()["error"]["code"]) == (409, "conflict")


async def session_of(client: TestClient, body: Mapping[str, Any]) -> str:
    answer = await client.post("/responses?agent_session_id=query", json=body)
    if answer.status == 200:
        assert answer.json()["agent_session_id"] == answer.headers["x-agent-session-id"]
    return answer.headers["x-agent-session-id"]


async def test_the_session_is_the_requests_then_the_sandboxs_then_the_conversations_then_new() -> None:
    fixed, free = echo(FOUNDRY_AGENT_SESSION_ID="box"), echo()
    assert await session_of(fixed, {"agent_session_id": "asked"}) == "asked"
    assert await session_of(fixed, {"conversation": "conv_1"}) == "box"
    assert await session_of(free, {"conversation": "conv_1"}) == await session_of(
        free, {"conversation": {"id": "conv_1"}}
    )
    previous = new_response_id()
    assert await session_of(free, {"previous_response_id": previous}) == await session_of(
        free, {"previous_response_id": previous}
    )
    new = await session_of(free, {})
    assert len(new) == 63
    assert new != await session_of(free, {})


async def test_the_sandboxs_session_is_on_errors_and_other_routes_too() -> None:
    fixed, free = echo(FOUNDRY_AGENT_SESSION_ID="box"), echo()
    assert (await fixed.post("/responses", content=b"{")).headers["x-agent-session-id"] == "box"
    assert (await fixed.get("/responses/x")).headers["x-agent-session-id"] == "box"
    assert "x-agent-session-id" not in (await free.post("/responses", content=b"{")).headers
    assert "x-agent-session-id" not in (await free.get("/responses/x")).headers


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, ""),
        ("hi", "hi"),
        ([{"role": "user", "content": "hi"}], "hi"),
        (
            [
                {"type": "message", "role": "system", "content": "be kind"},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "one"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "no"}]},
                {"type": "function_call_output", "call_id": "c", "output": "no"},
                {
                    "role": "user",
                    "content": [
                        {"type": "input_image", "image_url": "x"},
                        {"type": "input_text", "text": "two"},
                    ],
                },
            ],
            "one\ntwo",
        ),
    ],
)
async def test_input_is_the_text_of_the_user(given: Any, expected: str) -> None:
    answer = await echo().post("/responses", json={"input": given})
    assert answer.json()["output"][0]["content"][0]["text"] == f"Echo: {expected}"


async def test_what_a_handler_can_know() -> None:
    agent = Agent(environ={}, store=MemoryResponseStore)
    seen: list[Any] = []

    @agent.responses
    def reply(context: ResponseContext, request: dict[str, Any]) -> str:
        seen.extend((context, request))
        return ""

    headers = {
        "x-agent-user-id": "ada",
        "x-agent-foundry-call-id": "call",
        "X-Client-Tone": "dry",
        "x-other": "no",
    }
    answer = await TestClient(agent).post(
        "/responses?a=1",
        json={"input": "hi", "model": "m", "unknown": 1, "conversation": "c"},
        headers=headers,
    )
    context, request = seen
    assert context.response_id == answer.json()["id"]
    assert (context.user_id, context.call_id, context.conversation_id) == ("ada", "call", "c")
    assert context.client_headers == {"x-client-tone": "dry"}
    assert context.query_parameters == {"a": "1"}
    assert context.input_items[0]["content"] == [{"type": "input_text", "text": "hi"}]
    assert request == {"input": "hi", "model": "m", "conversation": "c"}
    assert answer.json()["conversation"] == {"id": "c"}


async def test_leaving_a_stream_cancels_the_handler_and_stores_it_so() -> None:
    agent = Agent(environ={}, store=MemoryResponseStore)
    ended: list[type[BaseException]] = []

    @agent.responses
    async def reply() -> AsyncIterator[str]:
        try:
            yield "one"
            await asyncio.sleep(60)
        except BaseException as error:
            ended.append(type(error))
            raise

    client = TestClient(agent)
    async with client.stream("POST", "/responses", json={"stream": True}) as stream:
        async for kind, data in stream.events():
            if kind == "response.created":
                response_id = data["response"]["id"]
            if kind == "response.output_text.delta":
                break
    assert ended == [asyncio.CancelledError]
    stored = (await client.get(f"/responses/{response_id}")).json()
    assert (stored["status"], stored["output"]) == ("cancelled", [])


async def test_log_records_of_a_handler_carry_the_response(caplog: pytest.LogCaptureFixture) -> None:
    from cupola_agent.logs import JsonFormatter

    agent = Agent(environ={}, store=MemoryResponseStore)
    lines: list[str] = []

    @agent.responses
    def reply() -> str:
        lines.append(JsonFormatter().format(logging.makeLogRecord({"msg": "mine"})))
        return ""

    answer = await TestClient(agent).post("/responses", json={})
    assert answer.json()["id"] in lines[0]
    assert answer.headers["x-request-id"] in lines[0]


async def test_half_a_surrogate_pair_is_escaped() -> None:
    answer = await echo().post("/responses", content=b'{"input":"\\ud800 \xc3\xa9","stream":true}')
    assert assert_well_numbered(answer) == TEXT_CHAIN
