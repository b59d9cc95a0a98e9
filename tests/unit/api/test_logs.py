from __future__ import annotations

import asyncio
import json

import pytest

from cupola.api import logs as module
from cupola.sandbox.fake import FakeProcess
from tests.unit.api.application import Application, Caller, Exchange
from tests.unit.sandbox.servers import Peer, Request, answer
from tests.unit.sessions.world import BOB, ROOT, World, program

ECHO = "/api/projects/default/agents/echo"
STREAM = f"{ECHO}/sessions/session-1:logstream"


async def talker(process: FakeProcess) -> int:
    """Prints the bodies of requests."""

    async def talk(peer: Peer, head: Request) -> None:
        process.print("stdout", await peer.body(head) + b"\n")
        await peer.send(answer())

    return await program(talk)(process)


async def say(caller: Caller, word: str, session: str = "session-1") -> None:
    body = {"agent_session_id": session, "input": word}
    assert (await caller.call("POST", f"{ECHO}/endpoint/protocols/openai/responses", body)).status == 200


def printed(frames: bytes) -> list[str]:
    """What containers printed according to a log stream."""
    shown = []
    for frame in frames.decode().split("\n\n")[:-1]:
        name, _, data = frame.partition("\ndata: ")
        assert name == "event: log"
        entry = json.loads(data)
        assert set(entry) == {"timestamp", "stream", "message"}
        if entry["stream"] == "stdout":
            shown.append(json.loads(entry["message"])["input"])
    return shown


@pytest.fixture
async def talking(world: World) -> World:
    world.programs["talker"] = talker
    await world.add(image="talker")
    return world


async def next_word(exchange: Exchange) -> str:
    while True:
        frame = await exchange.chunk()
        assert frame is not None
        if found := printed(frame):
            return found[0]


@pytest.mark.parametrize("path", [STREAM, f"{ECHO}/versions/1/sessions/session-1:logstream"])
async def test_the_log_of_a_session_is_a_stream_of_events(talking: World, ada: Caller, path: str) -> None:
    for word in ("one", "two"):
        await say(ada, word)
    found = await ada.call("GET", f"{path}?follow=false")
    assert (found.status, found.headers["cache-control"]) == (200, "no-cache")
    assert found.headers["content-type"].startswith("text/event-stream")
    assert printed(found.body) == ["one", "two"]


async def test_only_the_last_entries_are_shown_when_asked_for(talking: World, ada: Caller) -> None:
    for word in ("one", "two", "three"):
        await say(ada, word)
    assert printed((await ada.call("GET", f"{STREAM}?follow=false&tail=2")).body) == ["two", "three"]
    assert (await ada.call("GET", f"{STREAM}?follow=false&tail=0")).body == b""


async def test_a_log_is_followed_until_the_session_stops(talking: World, ada: Caller) -> None:
    await say(ada, "before")
    exchange = ada.open("GET", STREAM)
    await exchange.head()
    assert await next_word(exchange) == "before"
    for word in ("one", "two"):
        await say(ada, word)
        assert await next_word(exchange) == word
    assert (await ada.call("DELETE", f"{ECHO}?force=true")).status == 200
    while (frame := await exchange.chunk()) is not None:
        assert b"The sandbox was stopped." in frame


async def test_a_log_of_a_session_that_does_not_run_ends_by_itself(talking: World, ada: Caller) -> None:
    await say(ada, "before")
    (live,) = talking.manager._live.values()
    await live.stop()
    assert printed((await ada.call("GET", STREAM)).body) == ["before"]


async def test_a_follower_that_leaves_is_forgotten(talking: World, ada: Caller) -> None:
    await say(ada, "before")
    exchange = ada.open("GET", STREAM)
    await exchange.head()
    await next_word(exchange)
    (live,) = talking.manager._live.values()
    assert len(live.log._followers) == 1
    exchange.leave()
    await asyncio.wait_for(exchange.task, 20)
    await talking.until(lambda: not live.log._followers)


async def test_the_newest_session_can_be_asked_for(talking: World, ada: Caller) -> None:
    await say(ada, "one", "session-1")
    await say(ada, "two", "session-2")
    found = await ada.call("GET", f"{ECHO}/sessions/@newest:logstream?follow=false")
    assert printed(found.body) == ["two"]


@pytest.mark.parametrize("tail", ["x", "-1", "301", "\u0661", "", "000000000301", "1" * 5000])
async def test_a_tail_that_cannot_be_is_refused(talking: World, ada: Caller, tail: str) -> None:
    await say(ada, "one")
    found = await ada.call("GET", f"{STREAM}?tail={tail}")
    assert (found.error, found.json["error"]["param"]) == ((400, "bad_request"), "tail")


def statuses(frames: bytes) -> list[str]:
    """The platform's own messages of a log stream; everything else in it is an error."""
    entries = [json.loads(frame.partition("\ndata: ")[2]) for frame in frames.decode().split("\n\n")[:-1]]
    assert all(entry["stream"] == "status" for entry in entries)
    return [entry["message"] for entry in entries]


async def test_the_platforms_own_messages_can_be_asked_for_alone(talking: World, ada: Caller) -> None:
    await say(ada, "one")
    shown = statuses((await ada.call("GET", f"{STREAM}?follow=false&kind=system")).body)
    assert shown[0].startswith("Starting the sandbox")
    assert shown[1].startswith("The sandbox is ready")
    shown = statuses((await ada.call("GET", f"{STREAM}?follow=false&kind=system&tail=1")).body)
    assert len(shown) == 1
    assert printed((await ada.call("GET", f"{STREAM}?follow=false&kind=console")).body) == ["one"]


async def test_the_platforms_own_messages_can_be_followed_alone(talking: World, ada: Caller) -> None:
    await say(ada, "before")
    exchange = ada.open("GET", f"{STREAM}?kind=system")
    await exchange.head()
    for _ in range(2):
        assert statuses(await exchange.chunk() or b"")
    await say(ada, "after")
    assert (await ada.call("DELETE", f"{ECHO}?force=true")).status == 200
    assert statuses(await exchange.chunk() or b"") == ["The sandbox was stopped."]
    assert await exchange.chunk() is None


@pytest.mark.parametrize("kind", ["", "all", "Console", "console,system"])
async def test_a_kind_that_cannot_be_is_refused(talking: World, ada: Caller, kind: str) -> None:
    await say(ada, "one")
    found = await ada.call("GET", f"{STREAM}?kind={kind}")
    assert (found.error, found.json["error"]["param"]) == ((400, "bad_request"), "kind")


async def test_a_stream_that_stays_quiet_says_so_and_ends(
    talking: World, ada: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "QUIET_NOTICE", 0.02)
    monkeypatch.setattr(module, "QUIET_LIMIT", 0.04)
    await say(ada, "one")
    found = await ada.call("GET", f"{STREAM}?tail=0")
    assert statuses(found.body) == ["No logs since last 0.02 seconds"]
    assert await talking.sandboxes() == 1


async def test_an_entry_ends_the_quiet(talking: World, ada: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_NOTICE", 0.02)
    monkeypatch.setattr(module, "QUIET_LIMIT", 20.0)
    await say(ada, "one")
    exchange = ada.open("GET", f"{STREAM}?tail=0")
    await exchange.head()
    for word in ("two", "three"):
        assert statuses(await exchange.chunk() or b"") == ["No logs since last 0.02 seconds"]
        await say(ada, word)
        assert await next_word(exchange) == word
    exchange.leave()
    await asyncio.wait_for(exchange.task, 20)


async def test_a_stream_ends_after_its_limit_however_much_is_printed(
    talking: World, ada: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STREAM_LIMIT", 0.05)
    await say(ada, "one")
    exchange = ada.open("GET", STREAM)
    await exchange.head()
    async with asyncio.timeout(20):
        while not exchange.task.done():
            await say(ada, "more")
    assert exchange.task.exception() is None


async def test_a_user_that_somebody_acts_for_sees_its_own_logs_only(
    talking: World, application: Application, ada: Caller
) -> None:
    await say(ada, "one")
    headers = [(b"x-ms-user-identity", b"ada")]
    assert (await application.caller(ROOT).call("GET", STREAM, headers=headers)).error == (404, "session_not_found")
    assert (await ada.call("GET", STREAM, headers=headers)).error == (403, "impersonation_not_allowed")


async def test_what_does_not_exist_has_no_log(talking: World, ada: Caller) -> None:
    assert (await ada.call("GET", STREAM)).error == (404, "session_not_found")
    assert (await ada.call("GET", STREAM.replace("session-1", "@newest"))).error == (404, "session_not_found")
    assert (await ada.call("GET", STREAM.replace("echo", "nothing"))).error == (404, "not_found")


async def test_the_log_of_someone_elses_session_is_not_there(
    talking: World, application: Application, ada: Caller
) -> None:
    await say(ada, "one")
    for path in (STREAM, STREAM.replace("session-1", "@newest")):
        assert (await application.caller(BOB).call("GET", path)).error == (404, "session_not_found")
    assert printed((await application.caller(ROOT).call("GET", f"{STREAM}?follow=false")).body) == ["one"]
