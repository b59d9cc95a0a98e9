"""The test client: what a developer's own tests see."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from cupola_agent import Agent, SocketClosedError, WebSocket
from cupola_agent.testing import TestClient, UpgradeRefusedError


def agent() -> Agent:
    made = Agent(environ={})
    made.responses(lambda input: f"hi {input}")  # noqa: A006
    return made


async def test_a_whole_answer_and_a_stream_of_events() -> None:
    async with TestClient(agent()) as client:
        answer = await client.post("/responses", json={"input": "you", "store": False})
        assert answer.json()["output"][0]["content"][0]["text"] == "hi you"
        async with client.stream("POST", "/responses", json={"input": "you", "stream": True}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            kinds = [kind async for kind, _ in stream.events()]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


async def test_an_answer_that_breaks_off() -> None:
    made = Agent(environ={})

    @made.invocations
    async def invoke() -> AsyncIterator[str]:
        yield "part"
        raise ValueError

    async with TestClient(made).stream("POST", "/invocations") as stream:
        chunks = stream.chunks()
        assert await anext(chunks) == b"part"
        with pytest.raises(ConnectionError):
            await anext(chunks)


async def test_a_websocket() -> None:
    made = Agent(environ={})

    @made.websocket
    async def talk(socket: WebSocket) -> None:
        async for message in socket:
            if message == "end":
                return
            await socket.send(message)

    client = TestClient(made)
    async with client.websocket("/invocations_ws?a=1") as socket:
        await socket.send("hi")
        assert await socket.receive() == "hi"
        await socket.send_json({"a": 1})
        assert await socket.receive_json() == {"a": 1}
        await socket.send("end")
        with pytest.raises(SocketClosedError) as closed:
            await socket.receive()
        assert closed.value.code == 1000
    with pytest.raises(UpgradeRefusedError) as refused:
        async with client.websocket("/none"):
            pass
    assert refused.value.status == 404


async def test_leaving_a_websocket_ends_its_handler() -> None:
    ended = asyncio.Event()
    made = Agent(environ={})

    @made.websocket
    async def talk(socket: WebSocket) -> None:
        async for _ in socket:
            pass
        ended.set()

    async with TestClient(made).websocket("/invocations_ws"):
        pass
    assert ended.is_set()
