from __future__ import annotations

import asyncio
import json
import re

import pytest

from cupola.domain.ids import RESPONSE_ID
from cupola.domain.version import VersionStatus
from cupola.gateway import body, forward
from cupola.sandbox.fake import FakeProcess
from tests.unit.api.application import Application, Caller
from tests.unit.sandbox.servers import Peer, Request, answer
from tests.unit.sessions.world import BOB, Die, World, exits, program

AT_PROJECT = "/api/projects/default/openai/v1/responses"
AT_AGENT = "/api/projects/default/agents/echo/endpoint/protocols/openai/responses"
INVOCATIONS = "/api/projects/default/agents/echo/endpoint/protocols/invocations"
TIMING = r'tier;desc="cold", resolve;dur=N, queue;dur=N, start;dur=N, connect;dur=N, agent;dur=N'.replace(
    "N", r"[0-9.]+"
)
BOTH = [{"protocol": "responses", "version": "v1"}, {"protocol": "invocations", "version": "v1"}]
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def event(data: bytes) -> bytes:
    frame = b"event: x\ndata: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(frame), frame)


class Noted:
    """A behaviour that notes the requests it answers."""

    def __init__(self, reply: bytes = answer(b'{"ok": true}', b"200 OK", b"content-type: application/json")) -> None:
        self.requests: list[Request] = []
        self._reply = reply

    async def __call__(self, peer: Peer, head: Request) -> None:
        self.requests.append(Request(head.method, head.target, head.headers, await peer.body(head)))
        await peer.send(self._reply)


# Requests


@pytest.mark.parametrize(
    ("path", "reference"),
    [
        (AT_PROJECT, True),
        ("/api/projects/default/openai/responses", True),
        ("/api/projects/_project/openai/v1/responses", True),
        (AT_AGENT, False),
        ("/api/projects/default/agents/echo/endpoint/protocols/openai/v1/responses", False),
    ],
)
async def test_the_body_arrives_byte_for_byte_at_every_address(
    world: World, ada: Caller, path: str, reference: bool
) -> None:
    noted = Noted()
    world.programs["noted"] = program(noted)
    await world.add(image="noted")
    body = b'{ "input":"hi\\u00e9", "big": 1e400, "agent_reference":{"type":"agent_reference","name":"echo"} }'
    found = await ada.call("POST", f"{path}?api-version=v1&a=%20b", body if reference else b'{"input" :1}')
    assert (found.status, found.json) == (200, {"ok": True})
    (request,) = noted.requests
    assert (request.method, request.target) == (b"POST", b"/responses?api-version=v1&a=%20b")
    assert request.body == (body if reference else b'{"input" :1}')


async def test_an_agent_sees_only_the_headers_it_may_see(world: World, ada: Caller) -> None:
    noted = Noted()
    world.programs["noted"] = program(noted)
    await world.add(image="noted")
    secret = [(name, b"secret") for name in (b"cookie", b"x-forwarded-for", b"x-agent-user", b"x-identity-header")]
    shown = [(b"content-type", b"application/json"), (b"traceparent", b"00-1-2-03"), (b"x-request-id", b"my-id")]
    found = await ada.call("POST", AT_AGENT, {}, [*secret, *shown])
    given = (b"x-agent-response-id", found.headers["x-agent-response-id"].encode())
    seen = noted.requests[0].headers
    own = {(name, value) for name, value in seen if name in (b"x-agent-user-id", b"x-agent-foundry-call-id")}
    assert set(seen) - own == {(b"host", b"agent"), (b"content-length", b"2"), given, *shown}
    assert len(own) == 2
    assert found.headers["x-request-id"] == "my-id"


async def test_the_answer_is_passed_on_with_the_sessions_id(world: World, ada: Caller) -> None:
    reply = answer(b"no", b"418 Teapot", b"x-own: 1", b"server: agent", b"x-agent-session-id: forged")
    world.programs["noted"] = program(Noted(reply))
    await world.add(image="noted")
    found = await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})
    assert (found.status, found.body) == (418, b"no")
    assert re.fullmatch(TIMING, found.headers.pop("server-timing"))
    assert RESPONSE_ID.fullmatch(found.headers.pop("x-agent-response-id"))
    assert {name: value for name, value in found.headers.items() if name != "x-request-id"} == {
        "content-length": "2",
        "x-own": "1",
        "x-agent-session-id": "session-1",
    }


async def test_a_session_is_kept_by_its_id(world: World, ada: Caller) -> None:
    await world.add()
    first = await ada.call("POST", AT_AGENT, {})
    session = first.headers["x-agent-session-id"]
    again = await ada.call("POST", AT_AGENT, {"agent_session_id": session})
    assert again.headers["x-agent-session-id"] == session
    assert await world.sandboxes() == 1
    other = await ada.call("POST", AT_AGENT, {})
    assert other.headers["x-agent-session-id"] != session
    assert await world.sandboxes() == 2


async def test_a_version_can_be_asked_for(world: World, ada: Caller) -> None:
    world.programs["first"] = program(Noted(answer(b"first")))
    world.programs["second"] = program(Noted(answer(b"second")))
    await world.add(image="first")
    await world.add(image="second")
    bodies = [
        (await ada.call("POST", AT_PROJECT, {"agent": {"type": "agent_reference", "name": "echo", **version}})).body
        for version in ({"version": "1"}, {"version": 2}, {})
    ]
    assert bodies == [b"first", b"second", b"second"]


async def test_an_invocation_is_any_body_of_any_type_streamed_through(world: World, ada: Caller) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(peer: Peer, head: Request) -> None:
        arrived.put_nowait(head.target)
        async for chunk in peer.chunks():
            arrived.put_nowait(chunk)
        await peer.send(answer(b"\x00\xff", b"202 Accepted", b"content-type: x/y"))

    world.programs["taker"] = program(take)
    await world.add(image="taker", protocol_versions=BOTH)
    exchange = ada.open("POST", f"{INVOCATIONS}?agent_session_id=session-1&x=y", [(b"content-type", b"a/b")])
    exchange.send(b"\x00one", more=True)
    async with asyncio.timeout(20):
        assert await arrived.get() == b"/invocations?agent_session_id=session-1"
        assert await arrived.get() == b"\x00one"
    exchange.send(b"two")
    found = await exchange.answer()
    assert await arrived.get() == b"two"
    assert (found.status, found.body, found.headers["content-type"]) == (202, b"\x00\xff", "x/y")
    assert found.headers["x-agent-session-id"] == "session-1"


# Streams


async def test_events_are_passed_on_as_they_come(world: World, ada: Caller) -> None:
    go: asyncio.Queue[bytes] = asyncio.Queue()

    async def stream(peer: Peer, head: Request) -> None:
        await peer.body(head)
        await peer.send(SSE_HEAD)
        while data := await go.get():
            await peer.send(event(data))
        await peer.send(b"0\r\n\r\n")

    world.programs["stream"] = program(stream)
    await world.add(image="stream")
    exchange = ada.open("POST", AT_AGENT)
    exchange.send(b'{"stream": true}')
    status, headers = await exchange.head()
    assert status == 200
    assert (b"content-type", b"text/event-stream") in headers
    assert not [name for name, _ in headers if name == b"transfer-encoding"]
    for data in (b"one", b"two"):
        go.put_nowait(data)
        assert await exchange.chunk() == b"event: x\ndata: " + data + b"\n\n"
    go.put_nowait(b"")
    assert await exchange.chunk() is None


class Endless:
    """A behaviour that begins a stream and notices when nobody listens any more."""

    def __init__(self, *, read_body: bool = True) -> None:
        self.left = asyncio.Event()
        self._read_body = read_body

    async def __call__(self, peer: Peer, head: Request) -> None:
        if self._read_body:
            await peer.body(head)
        await peer.send(SSE_HEAD + event(b"begun"))
        await peer.closed()
        self.left.set()


async def test_a_client_that_leaves_during_the_answer_ends_the_agents_work(world: World, ada: Caller) -> None:
    endless = Endless()
    world.programs["endless"] = program(endless)
    version = await world.add(image="endless")
    exchange = ada.open("POST", AT_AGENT)
    exchange.send(b'{"agent_session_id": "session-1"}')
    await exchange.head()
    assert await exchange.chunk()
    exchange.leave()
    await asyncio.wait_for(endless.left.wait(), 20)
    assert await exchange.chunk() is None
    session = await world.session(version)
    assert not world.manager._live[session.key].busy


async def test_a_client_that_leaves_before_the_answer_ends_the_agents_work(world: World, ada: Caller) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def never(peer: Peer, head: Request) -> None:
        await peer.body(head)
        arrived.set()
        await peer.closed()
        left.set()

    world.programs["never"] = program(never)
    await world.add(image="never")
    exchange = ada.open("POST", AT_AGENT)
    exchange.send(b"{}")
    async with asyncio.timeout(20):
        await arrived.wait()
        exchange.leave()
        await left.wait()
        await exchange.task


async def test_a_client_that_leaves_during_its_request_reaches_no_agent(world: World, ada: Caller) -> None:
    await world.add()
    exchange = ada.open("POST", AT_AGENT)
    exchange.send(b'{"input":', more=True)
    exchange.leave()
    await asyncio.wait_for(exchange.task, 20)
    assert await world.sandboxes() == 0


async def test_a_client_that_leaves_during_an_invocation_ends_it(world: World, ada: Caller) -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def take(peer: Peer, head: Request) -> None:
        await peer.reader.readexactly(3)
        arrived.set()
        await peer.closed()
        left.set()

    world.programs["taker"] = program(take)
    await world.add(image="taker", protocol_versions=BOTH)
    exchange = ada.open("POST", INVOCATIONS)
    exchange.send(b"one", more=True)
    async with asyncio.timeout(20):
        await arrived.wait()
        exchange.leave()
        await left.wait()
        await exchange.task


async def test_a_client_that_leaves_after_an_early_answer_ends_the_agents_work(world: World, ada: Caller) -> None:
    endless = Endless(read_body=False)
    world.programs["endless"] = program(endless)
    await world.add(image="endless", protocol_versions=BOTH)
    exchange = ada.open("POST", INVOCATIONS)
    exchange.send(b"one", more=True)
    await exchange.head()
    assert await exchange.chunk()
    exchange.leave()
    await asyncio.wait_for(endless.left.wait(), 20)
    await asyncio.wait_for(exchange.task, 20)


# Refusals


@pytest.mark.parametrize("size", [100, 101])
async def test_a_responses_body_has_a_limit(world: World, size: int) -> None:
    await world.add()
    ada = Application(world, max_body=100).caller()
    exchange = ada.open("POST", AT_AGENT)
    body = b'{"input": "' + b"x" * (size - 13) + b'"}'
    exchange.send(body[:60], more=True)
    exchange.send(body[60:])
    found = await exchange.answer()
    if size == 100:
        assert (found.status, found.body) == (200, body)
    else:
        assert found.error == (413, "payload_too_large")
        assert "larger than 100 bytes, the setting max_request_body" in found.message
        assert await world.sandboxes() == 0


async def test_a_body_that_is_far_too_large_is_not_read_to_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "DRAIN_LIMIT", 200)
    await world.add()
    exchange = Application(world, max_body=100).caller().open("POST", AT_AGENT)
    for _ in range(3):
        exchange.send(b"x" * 100, more=True)
    assert (await exchange.answer()).error == (413, "payload_too_large")


async def test_an_invocation_whose_length_is_too_large_is_refused_at_once(world: World) -> None:
    await world.add(protocol_versions=BOTH)
    exchange = Application(world, max_body=100).caller().open("POST", INVOCATIONS, [(b"content-length", b"101")])
    assert (await exchange.answer()).error == (413, "payload_too_large")
    assert await world.sandboxes() == 0


async def test_an_invocation_that_grows_too_large_is_broken_off(world: World) -> None:
    broken = asyncio.Event()

    async def take(peer: Peer, head: Request) -> None:
        try:
            await peer.body(head)
        except asyncio.IncompleteReadError:
            broken.set()
            raise

    world.programs["taker"] = program(take)
    await world.add(image="taker", protocol_versions=BOTH)
    exchange = Application(world, max_body=100).caller().open("POST", INVOCATIONS)
    for _ in range(3):
        exchange.send(b"x" * 50, more=True)
    assert (await exchange.answer()).error == (413, "payload_too_large")
    await asyncio.wait_for(broken.wait(), 20)


@pytest.mark.parametrize(
    ("path", "declared"), [(AT_AGENT, "invocations"), (INVOCATIONS, "responses"), (INVOCATIONS, "invocations_ws")]
)
async def test_a_protocol_that_is_not_declared_is_refused(world: World, ada: Caller, path: str, declared: str) -> None:
    await world.add(protocol_versions=[{"protocol": declared, "version": "v1"}])
    found = await ada.call("POST", path, {})
    assert found.error == (400, "ProtocolVersionNotSupported")
    assert f"echo:1 does not declare the protocol {path.rpartition('/')[2]}, only {declared}" in found.message
    assert await world.sandboxes() == 0


async def test_agents_and_projects_that_do_not_exist_are_told(world: World, ada: Caller) -> None:
    assert (await ada.call("POST", AT_AGENT, {})).error == (404, "not_found")
    assert (await ada.call("POST", AT_PROJECT.replace("default", "nowhere"), {})).error == (404, "project_not_found")
    await world.add()
    assert (await ada.call("POST", AT_AGENT.replace("default", "other"), {})).error == (404, "not_found")


async def test_a_version_that_is_being_made_is_not_ready(world: World, ada: Caller) -> None:
    await world.add(status=VersionStatus.FAILED)
    found = await ada.call("POST", AT_AGENT, {})
    assert found.error == (400, "agent_version_failed")


async def test_the_session_of_someone_else_is_refused(world: World, application: Application) -> None:
    await world.add(protocol_versions=BOTH)
    body = {"agent_session_id": "session-1"}
    assert (await application.caller().call("POST", AT_AGENT, body)).status == 200
    bob = application.caller(BOB)
    assert (await bob.call("POST", AT_AGENT, body)).error == (403, "session_not_accessible")
    assert (await bob.call("POST", f"{INVOCATIONS}?agent_session_id=session-1", {})).error == (
        403,
        "session_not_accessible",
    )


@pytest.mark.parametrize("query", ["agent_session_id=short", "agent_session_id=../../../etc/passwd"])
async def test_an_invocation_with_a_wrong_session_id_is_refused(world: World, ada: Caller, query: str) -> None:
    await world.add(protocol_versions=BOTH)
    assert (await ada.call("POST", f"{INVOCATIONS}?{query}", {})).error == (400, "bad_request")


async def test_nobody_reaches_an_agent_without_a_token(world: World, application: Application) -> None:
    await world.add(protocol_versions=BOTH)
    nobody = application.caller(None)
    for path in (AT_AGENT, AT_PROJECT, INVOCATIONS):
        assert (await nobody.call("POST", path, {})).error == (401, "Unauthorized")
    assert await world.sandboxes() == 0


# Agents that fail


async def test_a_container_that_does_not_start_is_a_424_with_its_last_lines(world: World, ada: Caller) -> None:
    world.programs["broken"] = exits(1, b"no database\n")
    await world.add(image="broken")
    found = await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})
    assert found.error == (424, "session_not_ready")
    assert "Its last output:\nno database" in found.message
    assert found.headers["x-agent-session-id"] == "session-1"
    assert "retry-after" not in found.headers


async def test_an_agent_that_dies_before_its_answer_is_a_502_that_is_not_to_be_tried_again(
    world: World, ada: Caller
) -> None:
    calls = 0

    async def die(peer: Peer, head: Request) -> None:
        nonlocal calls
        calls += 1
        await peer.body(head)
        raise Die

    world.programs["mortal"] = program(die)
    await world.add(image="mortal")
    found = await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})
    assert found.error == (502, "agent_connection_lost")
    assert found.headers["x-should-retry"] == "false"
    assert found.headers["x-agent-session-id"] == "session-1"
    assert found.message.startswith("The agent did not answer the request. The ")
    assert calls == 1


async def test_an_agent_that_closes_the_connection_is_a_502_as_well(world: World, ada: Caller) -> None:
    async def close(peer: Peer, head: Request) -> None:
        await peer.body(head)
        raise ConnectionError

    world.programs["closer"] = program(close)
    await world.add(image="closer")
    found = await ada.call("POST", AT_AGENT, {})
    assert found.error == (502, "agent_connection_lost")
    assert "The agent closed the connection before its answer was complete." in found.message


async def test_a_stream_that_the_agent_breaks_off_ends_with_an_error_event(world: World, ada: Caller) -> None:
    async def die(peer: Peer, head: Request) -> None:
        await peer.body(head)
        await peer.send(SSE_HEAD + event(b"begun") + b"40\r\nevent: x\ndata: hal")
        raise Die

    world.programs["mortal"] = program(die)
    await world.add(image="mortal")
    found = await ada.call("POST", AT_AGENT, {})
    assert found.status == 200
    frames = found.body.decode().split("\n\n")
    assert frames[:2] == ["event: x\ndata: begun", "event: x\ndata: hal"]
    last = next(frame for frame in reversed(frames) if frame)
    name, _, data = last.partition("\ndata: ")
    assert name == "event: error"
    shown = json.loads(data)
    assert (shown["type"], shown["code"], shown["param"]) == ("error", "agent_stopped", None)
    assert "The agent stopped before its answer was complete" in shown["message"]


async def test_any_other_answer_that_is_broken_off_is_broken_off_for_the_caller(world: World, ada: Caller) -> None:
    async def die(peer: Peer, head: Request) -> None:
        await peer.body(head)
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        raise Die

    world.programs["mortal"] = program(die)
    await world.add(image="mortal")
    exchange = ada.open("POST", AT_AGENT)
    exchange.send(b"{}")
    assert (await exchange.head())[0] == 200
    assert await exchange.chunk() == b"half"
    with pytest.raises(Exception, match="before its answer was complete"):
        await exchange.chunk()


class LingeringDeath:
    """An agent that stops listening when it is told to die, while its container takes a moment longer to end."""

    LINGERS = 0.05

    def __init__(self) -> None:
        self.starts = 0
        self._process: FakeProcess
        self._dying: asyncio.Event

    async def __call__(self, process: FakeProcess) -> int:
        self.starts += 1
        self._process, self._dying = process, asyncio.Event()
        serving = asyncio.ensure_future(program(self._answer)(process))
        try:
            await self._dying.wait()
            await asyncio.sleep(self.LINGERS)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
        return 9

    async def _answer(self, peer: Peer, head: Request) -> None:
        if b"die" in await peer.body(head):
            self.die()
            raise ConnectionError
        await peer.send(answer(b"alive", b"200 OK", b"connection: close"))

    def die(self) -> None:
        self._process.port = None
        self._dying.set()


async def test_who_is_told_of_a_death_does_not_meet_the_dying_container_again(world: World, ada: Caller) -> None:
    world.programs["lingers"] = agent = LingeringDeath()
    await world.add(image="lingers")
    told = await ada.call("POST", AT_AGENT, {"input": "die", "agent_session_id": "session-1"})
    assert told.error == (502, "agent_connection_lost")
    assert told.message == "The agent did not answer the request. The container exited with code 9."
    again = await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})
    assert (again.status, again.body, agent.starts) == (200, b"alive", 2)


async def test_a_request_that_a_dying_container_never_saw_goes_to_the_next_one(world: World, ada: Caller) -> None:
    world.programs["lingers"] = agent = LingeringDeath()
    await world.add(image="lingers")
    assert (await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})).body == b"alive"
    agent.die()
    again = await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})
    assert (again.status, again.body, agent.starts) == (200, b"alive", 2)


async def test_an_agent_that_lives_but_accepts_no_connection_is_a_502(
    world: World, ada: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "EXIT_NOTICE", 0.01)
    world.programs["lingers"] = agent = LingeringDeath()
    agent.LINGERS = 60
    await world.add(image="lingers")
    assert (await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})).body == b"alive"
    agent.die()
    found = await ada.call("POST", AT_AGENT, {"agent_session_id": "session-1"})
    assert found.error == (502, "agent_connection_lost")
    assert "does not accept connections on its port" in found.message
