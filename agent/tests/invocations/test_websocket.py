"""WebSockets against the library's own server, with the `websockets` client."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cupola_agent import Agent, CallContext, SocketClosedError, WebSocket
from cupola_agent.call import current_call
from cupola_agent.logs import JsonFormatter
from cupola_agent.testing import TestClient, UpgradeRefusedError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agent.tests.invocations.serving import serving


@asynccontextmanager
async def served(function: Callable[..., Any] | None, **environ: str) -> AsyncIterator[str]:
    """The address of the WebSocket of an agent that a server of its own serves."""
    agent = Agent(environ=environ)
    if function is not None:
        agent.websocket(function)
    async with serving(agent) as port:
        yield f"ws://127.0.0.1:{port}/invocations_ws"


@asynccontextmanager
async def talking(function: Callable[..., Any], query: str = "", **environ: str) -> AsyncIterator[ClientConnection]:
    async with served(function, **environ) as url, connect(f"{url}{query}") as client:
        yield client


async def closed(client: ClientConnection) -> tuple[int, str]:
    """The code and reason that the server closes with."""
    with pytest.raises(ConnectionClosed) as caught:
        await client.recv()
    frame = caught.value.rcvd
    return (frame.code, frame.reason) if frame else (1006, "")


async def echo(socket: WebSocket) -> None:
    async for message in socket:
        await socket.send(message)


async def test_messages_go_both_ways_as_they_are() -> None:
    async with talking(echo) as client:
        for message in ("hé", b"\x00\xff", "", "x" * 100_000):
            await client.send(message)
            assert await client.recv() == message


async def test_json_goes_as_text() -> None:
    async def greet(socket: WebSocket) -> None:
        await socket.send_json({"hello": [1, "é"]})

    async with talking(greet) as client:
        assert await client.recv() == '{"hello":[1,"é"]}'
        assert await closed(client) == (1000, "")


async def test_a_handler_knows_the_handshake_and_who_calls() -> None:
    async def tell(socket: WebSocket, context: CallContext) -> None:
        await socket.send_json(
            [socket.query, socket.headers["x-client-a"], context.session_id, context.user_id, current_call().call_id]
        )

    headers = {"x-client-a": "1", "x-agent-user-id": "u", "x-agent-foundry-call-id": "c"}
    async with (
        served(tell, FOUNDRY_AGENT_SESSION_ID="box") as url,
        connect(f"{url}?agent_session_id=other&a=b", additional_headers=headers) as client,
    ):
        assert json.loads(await client.recv()) == [{"agent_session_id": "other", "a": "b"}, "1", "box", "u", "c"]


async def test_a_session_without_a_sandbox_has_an_id_of_its_own() -> None:
    async def tell(socket: WebSocket, context: CallContext) -> None:
        await socket.send(context.session_id)

    async with talking(tell) as client:
        assert len(await client.recv()) == 36


async def test_without_a_handler_the_upgrade_is_refused() -> None:
    async with served(None) as url:
        with pytest.raises(InvalidStatus) as caught:
            await connect(url)
    assert caught.value.response.status_code == 403


async def test_no_subprotocol_is_chosen() -> None:
    async def offered(socket: WebSocket) -> None:
        await socket.send(socket.headers["sec-websocket-protocol"])

    async with served(offered) as url:
        client = await connect(url, subprotocols=["a", "b"])  # type: ignore[list-item]
        assert await client.recv() == "a, b"
        assert client.subprotocol is None
        await client.close()


async def raises(socket: WebSocket) -> None:
    raise LookupError("secret")


async def closes(socket: WebSocket) -> None:
    await socket.close(4321, "enough")


@pytest.mark.parametrize(
    ("function", "code", "reason"), [(raises, 1011, "Internal server error"), (closes, 4321, "enough")]
)
async def test_how_a_handler_ends_it(function: Callable[..., Any], code: int, reason: str) -> None:
    async with talking(function) as client:
        assert await closed(client) == (code, reason)


async def test_a_reserved_code_is_a_mistake_of_the_handler() -> None:
    async def wrong(socket: WebSocket) -> None:
        with pytest.raises(ValueError, match="1006"):
            await socket.close(1006)
        await socket.send("told")

    async with talking(wrong) as client:
        assert await client.recv() == "told"


async def test_a_handler_that_reads_on_learns_how_the_client_left() -> None:
    left: asyncio.Queue[int] = asyncio.Queue()

    async def reads(socket: WebSocket) -> None:
        try:
            await socket.receive()
        except SocketClosedError as error:
            left.put_nowait(error.code)
            raise

    async with talking(reads) as client:
        await client.close(4000)
        assert await asyncio.wait_for(left.get(), 10) == 4000


@pytest.mark.parametrize(
    ("function", "client_code", "code", "initiator"),
    [(echo, 1000, "1000", "client"), (echo, 4001, "4001", "client"), (closes, None, "4321", "agent"),
     (raises, None, "1011", "agent")],
)  # fmt: skip
async def test_the_log_says_once_how_it_ended(
    function: Callable[..., Any],
    client_code: int | None,
    code: str,
    initiator: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lines: list[dict[str, Any]] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith("WebSocket of session"):
                lines.append(json.loads(JsonFormatter().format(record)))

    caplog.set_level(logging.INFO, "cupola_agent")
    logger, handler = logging.getLogger("cupola_agent"), Lines()
    logger.addHandler(handler)
    try:
        async with talking(function, FOUNDRY_AGENT_SESSION_ID="box") as client:
            if client_code is None:
                await closed(client)
            else:
                await client.close(client_code)
    finally:
        logger.removeHandler(handler)
    assert [(line["session_id"], line["close_code"], line["initiator"]) for line in lines] == [("box", code, initiator)]
    assert int(lines[0]["duration_ms"]) >= 0
    assert "secret" not in lines[0]["message"]


async def test_a_server_that_ends_closes_it_as_going_away() -> None:
    begun = asyncio.Event()

    async def waits(socket: WebSocket) -> None:
        begun.set()
        await socket.receive()

    async with served(waits) as url:
        client = await connect(url)
        await begun.wait()
    assert (await closed(client))[0] == 1001


async def yields(socket: WebSocket) -> AsyncIterator[str]:
    yield "to nobody"


@pytest.mark.parametrize("function", [lambda socket: None, yields])
def test_only_an_async_function_can_hold_a_websocket(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="async function"):
        Agent(environ={}).websocket(function)


async def test_no_conversation_begins_while_the_process_ends() -> None:
    agent = Agent(environ={})
    agent.websocket(echo)
    agent.drain()
    with pytest.raises(UpgradeRefusedError) as caught:
        async with TestClient(agent).websocket("/invocations_ws"):
            pass
    assert caught.value.status == 503
