"""How the server begins and ends (contract section 1.4)."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from cupola_agent.exchange import Exchange, Socket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

Serve = Callable[..., AbstractAsyncContextManager[Any]]

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_the_application_is_told_of_start_drain_and_stop_once_and_in_order(serve: Serve) -> None:
    async with serve() as served:
        assert served.app.told == ["start"]
        await served.server.stop(asyncio.Event())
        assert served.app.told == ["start", "drain", "stop"]


async def test_for_a_moment_new_clients_still_get_answers_and_then_nobody_listens(serve: Serve) -> None:
    async with serve() as served:
        idle = await served.connect()
        idle.send(GET)
        await idle.response()
        stopping = asyncio.create_task(served.server.stop(served.hurry))
        await asyncio.sleep(0)
        fresh = await served.connect()
        fresh.send(GET)
        status, headers, _ = await fresh.response()
        assert (status, headers["connection"]) == (200, "close")
        assert await idle.rest() == b""
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await served.connect()


async def test_what_is_in_flight_ends_properly(serve: Serve) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        asked.set()
        await go_on.wait()
        exchange.respond(200, (), b"late but whole")

    async with serve(answer, grace_seconds=30) as served:
        raw = await served.connect()
        raw.send(GET)
        await asyncio.wait_for(asked.wait(), 10)
        stopping = asyncio.create_task(served.server.stop(served.hurry))
        while "drain" not in served.app.told:
            await asyncio.sleep(0)
        go_on.set()
        status, headers, body = await raw.response()
        assert (status, headers["connection"], body) == (200, "close", b"late but whole")
        await asyncio.wait_for(stopping, 10)


@pytest.mark.parametrize("hurried", [False, True])
async def test_what_does_not_end_in_time_or_by_a_second_signal_is_cut(serve: Serve, hurried: bool) -> None:
    asked, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        exchange.start(200, ())
        exchange.write(b"begun")
        asked.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with serve(answer, grace_seconds=3600 if hurried else 0.05) as served:
        raw = await served.connect()
        raw.send(GET)
        await asyncio.wait_for(asked.wait(), 10)
        stopping = asyncio.create_task(served.server.stop(served.hurry))
        if hurried:
            served.hurry.set()
        assert not (await raw.rest()).endswith(b"0\r\n\r\n")
        await asyncio.wait_for(stopping, 10)
        assert cancelled.is_set()
        assert served.app.told == ["start", "drain", "stop"]


async def test_an_open_websocket_is_told_that_the_server_goes(serve: Serve) -> None:
    async def talk(socket: Socket) -> None:
        await socket.accept()
        await asyncio.sleep(3600)

    async with serve(talking=talk, grace_seconds=0.05) as served:
        async with connect(f"ws://127.0.0.1:{served.port}/") as client:
            stopping = asyncio.create_task(served.server.stop(served.hurry))
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        await asyncio.wait_for(stopping, 10)


async def test_an_idle_connection_outlives_a_time_in_which_the_whole_process_stood_still(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setattr("cupola_agent.server.connection.IDLE_SECONDS", 1.5)
    async with serve() as served:
        raw = await served.connect()
        raw.send(GET)
        await raw.response()
        time.sleep(3)  # noqa: ASYNC251  what a frozen process looks like from within
        raw.send(GET)
        assert (await raw.response())[0] == 200
