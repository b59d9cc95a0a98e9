"""Responses by their id, and chains of turns that stay in one session."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import unquote

import pytest

from cupola.sessions.lifecycle import Status
from tests.unit.api.application import Answer, Application, Caller
from tests.unit.sandbox.servers import Peer, Request, answer
from tests.unit.sessions.world import BOB, ROOT, World, program

AT_AGENT = "/api/projects/default/agents/echo/endpoint/protocols/openai/responses"
BASES = [
    "/api/projects/default/openai/responses",
    "/api/projects/default/openai/v1/responses",
    AT_AGENT,
    "/api/projects/default/agents/echo/endpoint/protocols/openai/v1/responses",
]
REFERENCE = {"agent_reference": {"type": "agent_reference", "name": "echo"}}


class Store:
    """An agent that knows the responses it gave: in each session others."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes]] = []
        self.bodies: list[dict[str, Any]] = []

    async def __call__(self, peer: Peer, head: Request) -> None:
        body = await peer.body(head)
        self.asked.append((head.method, head.target))
        if head.target == b"/responses":
            self.bodies.append(json.loads(body))
            found = {"id": (head.header(b"x-agent-response-id") or b"").decode()}
        else:
            found = {"asked": f"{head.method.decode()} {head.target.decode()}"}
        await peer.send(answer(json.dumps(found).encode(), b"200 OK", b"content-type: application/json"))


@pytest.fixture
async def store(world: World) -> Store:
    store = Store()
    world.programs["store"] = program(store)
    await world.add(image="store")
    return store


async def turn(caller: Caller, path: str = AT_AGENT, **fields: object) -> Answer:
    found = await caller.call("POST", path, {"input": "x", **fields})
    assert found.status == 200, found.body
    assert found.json["id"] == found.headers["x-agent-response-id"]
    return found


# By id


@pytest.mark.parametrize("base", BASES)
async def test_every_operation_reaches_the_session_of_the_response(ada: Caller, store: Store, base: str) -> None:
    made = await turn(ada, base, **REFERENCE)
    one = f"/responses/{made.json['id']}"
    for method, path in (
        ("GET", ""),
        ("GET", "?stream=true&starting_after=3"),
        ("POST", "/cancel"),
        ("GET", "/input_items?limit=5&order=asc&after=a%20b"),
        ("DELETE", "?api-version=v1"),
    ):
        found = await ada.call(method, f"{base.removesuffix('/responses')}{one}{path}")
        assert found.json == {"asked": f"{method} {one}{path}"}
        assert found.headers["x-agent-session-id"] == made.headers["x-agent-session-id"]


async def test_a_response_is_found_at_the_project_and_at_its_agent_only(
    world: World, ada: Caller, store: Store
) -> None:
    await world.add("other")
    response = (await turn(ada)).json["id"]
    assert (await ada.call("GET", f"{BASES[0]}/{response}")).status == 200
    for elsewhere in (AT_AGENT.replace("echo", "other"), BASES[0].replace("default", "other")):
        assert (await ada.call("GET", f"{elsewhere}/{response}")).error == (404, "not_found")


async def test_a_stopped_session_is_woken_for_its_responses(world: World, ada: Caller, store: Store) -> None:
    response = (await turn(ada)).json["id"]
    (live,) = world.manager._live.values()
    await live.stop()
    assert live.status is Status.STORED
    assert (await ada.call("GET", f"{AT_AGENT}/{response}")).status == 200
    assert await world.sandboxes() == 1


@pytest.mark.parametrize("path", ["", "/cancel", "/input_items"])
async def test_someone_elses_response_is_as_unknown_as_one_that_never_was(
    application: Application, store: Store, path: str
) -> None:
    response = (await turn(application.caller())).json["id"]
    method = "POST" if path == "/cancel" else "GET"
    texts = set()
    for asked in (response, response[:-4] + "0000", "resp_of_the_agents_own", "no such id"):
        found = await application.caller(BOB).call(method, f"{AT_AGENT}/{asked}{path}")
        assert found.error == (404, "not_found")
        texts.add(found.message.replace(asked, "ID"))
    assert len(texts) == 1
    assert len(store.asked) == 1
    assert (await application.caller(ROOT).call(method, f"{AT_AGENT}/{response}{path}")).status == 200


async def test_a_delegated_user_sees_the_responses_made_for_it_alone(application: Application, store: Store) -> None:
    root = application.caller(ROOT)
    alice, eve = [(b"x-ms-user-identity", name) for name in (b"alice", b"eve")]
    made = await root.call("POST", AT_AGENT, {"input": "x"}, [alice])
    response = made.json["id"]
    assert (await root.call("GET", f"{AT_AGENT}/{response}", b"", [alice])).status == 200
    assert (await root.call("GET", f"{AT_AGENT}/{response}", b"", [eve])).status == 404
    continued = await root.call("POST", AT_AGENT, {"previous_response_id": response}, [eve])
    assert continued.error == (404, "not_found")


async def test_an_id_that_the_agent_made_is_found_when_the_session_is_named(ada: Caller, store: Store) -> None:
    session = (await turn(ada)).headers["x-agent-session-id"]
    found = await ada.call("GET", f"{AT_AGENT}/resp_own?agent_session_id={session}")
    assert (found.status, store.asked[-1][1]) == (200, f"/responses/resp_own?agent_session_id={session}".encode())
    unknown = await ada.call("GET", f"{AT_AGENT}/resp_own")
    assert unknown.error == (404, "not_found")
    assert "agent_session_id" in unknown.message
    assert (await ada.call("GET", f"{AT_AGENT}/resp_own?agent_session_id=session-none")).status == 404


@pytest.mark.parametrize("asked", ["%2e%2e", "..%2f..%2finvocations", "a%0d%0ax", "%3fstream", "a%20b"])
async def test_an_id_that_cannot_be_reaches_no_agent(ada: Caller, store: Store, asked: str) -> None:
    session = (await turn(ada)).headers["x-agent-session-id"]
    found = await ada.call("GET", f"{AT_AGENT}/{unquote(asked).replace('?', '%3f')}?agent_session_id={session}")
    assert found.status == 404
    assert len(store.asked) == 1


async def test_a_response_that_is_not_stored_is_not_remembered(ada: Caller, store: Store) -> None:
    response = (await turn(ada, store=False)).json["id"]
    assert (await ada.call("GET", f"{AT_AGENT}/{response}")).error == (404, "not_found")


async def test_a_response_in_the_background_is_on_disk_before_its_caller_knows_it(
    world: World, ada: Caller, store: Store
) -> None:
    response = (await turn(ada, background=True)).json["id"]
    # Not even asked of the process that made it.
    world.references._unwritten.clear()
    assert (await ada.call("GET", f"{AT_AGENT}/{response}")).status == 200


async def test_the_method_of_a_path_is_told(ada: Caller, store: Store) -> None:
    for method, path in (("PUT", ""), ("GET", ""), ("PUT", "/x"), ("POST", "/x"), ("GET", "/x/cancel")):
        assert (await ada.call(method, AT_AGENT + path)).error == (405, "method_not_allowed")


async def test_a_conversation_is_compacted_in_its_session(ada: Caller, store: Store) -> None:
    made = await turn(ada)
    found = await ada.call("POST", f"{AT_AGENT}/compact", {"model": "m", "previous_response_id": made.json["id"]})
    assert found.json == {"asked": "POST /responses/compact"}
    assert found.headers["x-agent-session-id"] == made.headers["x-agent-session-id"]


# Chains of turns


async def test_a_chain_of_turns_stays_in_one_session_and_partition(world: World, ada: Caller, store: Store) -> None:
    first = await turn(ada)
    second = await turn(ada, previous_response_id=first.json["id"])
    third = await turn(ada, BASES[1], previous_response_id=second.json["id"], **REFERENCE)
    made = [first, second, third]
    assert len({found.headers["x-agent-session-id"] for found in made}) == 1
    assert len({found.json["id"][:25] for found in made}) == 1
    assert store.bodies[1] == {"input": "x", "previous_response_id": first.json["id"]}
    assert await world.sandboxes() == 1


async def test_an_explicit_session_wins_over_the_response_before(ada: Caller, store: Store) -> None:
    first = await turn(ada)
    second = await turn(ada, previous_response_id=first.json["id"], agent_session_id="session-2")
    assert second.headers["x-agent-session-id"] == "session-2"


async def test_a_response_before_that_is_not_known_is_a_404(application: Application, store: Store) -> None:
    first = (await turn(application.caller())).json["id"]
    for caller, previous in ((application.caller(), "resp_unknown"), (application.caller(BOB), first)):
        found = await caller.call("POST", AT_AGENT, {"previous_response_id": previous})
        assert found.error == (404, "not_found")
        assert found.json["error"]["param"] == "previous_response_id"
    assert len(store.asked) == 1


@pytest.mark.parametrize("spelling", ["conv_1", {"id": "conv_1"}])
async def test_a_conversation_stays_in_one_session(application: Application, store: Store, spelling: object) -> None:
    ada, bob = application.caller(), application.caller(BOB)
    sessions = [(await turn(ada, conversation=spelling)).headers["x-agent-session-id"] for _ in range(3)]
    assert len(set(sessions)) == 1
    assert (await turn(ada, conversation="conv_2")).headers["x-agent-session-id"] != sessions[0]
    assert (await turn(bob, conversation="conv_1")).headers["x-agent-session-id"] != sessions[0]


async def test_a_conversation_is_bound_by_its_first_turn(ada: Caller, store: Store) -> None:
    named = await turn(ada, conversation="by-session", agent_session_id="session-1")
    assert (await turn(ada, conversation="by-session")).headers["x-agent-session-id"] == "session-1"
    await turn(ada, conversation="by-session", agent_session_id="session-2")
    assert (await turn(ada, conversation="by-session")).headers["x-agent-session-id"] == "session-1"
    await turn(ada, conversation="by-response", previous_response_id=named.json["id"])
    assert (await turn(ada, conversation="by-response")).headers["x-agent-session-id"] == "session-1"


async def test_first_turns_at_once_share_the_session_of_one_of_them(world: World, ada: Caller, store: Store) -> None:
    made = await asyncio.gather(*(turn(ada, conversation="conv_1") for _ in range(8)))
    assert len({found.headers["x-agent-session-id"] for found in made}) == 1
    assert await world.sandboxes() == 1


async def test_a_conversation_that_cannot_be_is_refused(ada: Caller, store: Store) -> None:
    for conversation in ("", "a b", "x" * 257, {"id": "a/b"}):
        found = await ada.call("POST", AT_AGENT, {"conversation": conversation})
        assert found.error == (400, "invalid_request_error")
