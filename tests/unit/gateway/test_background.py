from __future__ import annotations

import asyncio
import json
import re

import pytest

from cupola.domain.ids import RESPONSE_ID, new_response_id
from cupola.gateway import background as module
from cupola.sessions.lifecycle import Status
from cupola.sessions.live import LiveSession
from tests.unit.api.application import Caller
from tests.unit.sandbox.servers import Peer, Request, answer
from tests.unit.sessions.world import World, program

AT_AGENT = "/api/projects/default/agents/echo/endpoint/protocols/openai/responses"


class Working:
    """An agent that works on a response until it is told to be done."""

    def __init__(self, *, knows: bool = True) -> None:
        self.status = "in_progress"
        self.ids: list[bytes | None] = []
        self.users: set[bytes | None] = set()
        self.asked: list[bytes] = []
        self._knows = knows

    async def __call__(self, peer: Peer, head: Request) -> None:
        body = await peer.body(head)
        self.users.add(head.header(b"x-agent-user-id"))
        if head.method == b"GET":
            self.asked.append(head.target)
            if not self._knows:
                await peer.send(answer(b"{}", b"404 Not Found"))
                return
        else:
            assert json.loads(body)
            self.ids.append(head.header(b"x-agent-response-id"))
        await peer.send(answer(json.dumps({"status": self.status}).encode(), b"200 OK"))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_LOOK", 0.001)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.002)


def resting(live: LiveSession) -> Status:
    return live.status


async def test_a_response_in_the_background_keeps_its_sandbox_awake(world: World, ada: Caller) -> None:
    working = Working()
    world.programs["working"] = program(working)
    await world.add(image="working")
    body = {"input": "x", "background": True, "agent_session_id": "session-1"}
    assert (await ada.call("POST", AT_AGENT, body)).status == 200
    (live,) = world.manager._live.values()
    await world.until(lambda: len(working.asked) > 2)
    assert len(working.users) == 1, "the response is asked for as the user whose it is"
    assert None not in working.users
    world.age += 3000
    world.manager._put_to_rest()
    assert resting(live) is Status.RUNNING
    (given,) = working.ids
    assert given is not None
    assert RESPONSE_ID.fullmatch(given.decode())
    assert set(working.asked) == {b"/responses/" + given}
    working.status = "completed"
    await world.until(lambda: not live.busy)
    world.age += 901
    world.manager._put_to_rest()
    assert resting(live) is Status.STOPPING


async def test_it_does_so_when_the_client_of_its_stream_has_left(world: World, ada: Caller) -> None:
    working = Working()
    world.programs["working"] = program(working)
    await world.add(image="working")
    exchange = ada.open("POST", AT_AGENT)
    exchange.send(b'{"background": true, "stream": true}')
    await exchange.head()
    exchange.leave()
    await exchange.answer_is_over()
    await world.until(lambda: len(working.asked) > 2)
    working.status = "failed"
    (live,) = world.manager._live.values()
    await world.until(lambda: not live.busy)


async def test_what_the_agent_does_not_know_keeps_nobody_awake(world: World, ada: Caller) -> None:
    working = Working(knows=False)
    world.programs["working"] = program(working)
    await world.add(image="working")
    await ada.call("POST", AT_AGENT, {"background": True})
    (live,) = world.manager._live.values()
    await world.until(lambda: not live.busy)
    assert len(working.asked) == 1


async def test_a_request_that_is_answered_at_once_is_not_asked_for_again(world: World, ada: Caller) -> None:
    working = Working()
    world.programs["working"] = program(working)
    await world.add(image="working")
    await ada.call("POST", AT_AGENT, {"background": False})
    await asyncio.sleep(0.01)
    assert working.asked == []


def test_an_id_follows_the_partition_of_the_response_before_it() -> None:
    first = new_response_id(None)
    assert re.fullmatch(r"caresp_[0-9a-f]{16}00[a-z0-9]{32}", first)
    assert new_response_id(first)[:25] == first[:25]
    assert new_response_id(first) != first
    assert RESPONSE_ID.fullmatch(new_response_id("resp_of_somebody_else"))
    conversation = "conv_" + "0123456789abcdef00" + "x" * 32
    assert new_response_id(None, conversation)[7:25] == conversation[5:23]
    assert new_response_id(first, conversation)[:25] == first[:25]
