"""Invocations by their id, and an agent's documents."""

from __future__ import annotations

import json
import uuid

import pytest

from tests.unit.api.application import Answer, Application, Caller
from tests.unit.sandbox.servers import Peer, Request, answer
from tests.unit.sessions.world import BOB, World, program

PROTOCOLS = "/api/projects/default/agents/echo/endpoint/protocols"
AT_AGENT = f"{PROTOCOLS}/invocations"
DECLARED = [{"protocol": "invocations", "version": "v1"}, {"protocol": "invocations_ws", "version": "v1"}]


class Jobs:
    """An agent that says what it was asked, with a status of the test's choice."""

    def __init__(self) -> None:
        self.status = b"200 OK"
        self.ids: list[str] = []

    async def __call__(self, peer: Peer, head: Request) -> None:
        await peer.body(head)
        if head.method == b"POST" and not head.target.partition(b"?")[0].endswith(b"/cancel"):
            self.ids.append((head.header(b"x-agent-invocation-id") or b"").decode())
        found = {"asked": f"{head.method.decode()} {head.target.decode()}"}
        await peer.send(answer(json.dumps(found).encode(), self.status, b"x-agent-invocation-id: forged"))


@pytest.fixture
async def jobs(world: World) -> Jobs:
    jobs = Jobs()
    world.programs["jobs"] = program(jobs)
    await world.add(image="jobs", protocol_versions=DECLARED)
    return jobs


async def invoke(caller: Caller) -> Answer:
    found = await caller.call("POST", AT_AGENT, b"work")
    assert found.status < 300
    return found


async def test_an_invocation_has_an_id_of_the_platforms(ada: Caller, jobs: Jobs) -> None:
    first, second = await invoke(ada), await invoke(ada)
    given = [found.headers["x-agent-invocation-id"] for found in (first, second)]
    assert given == jobs.ids
    assert len({uuid.UUID(one) for one in given}) == 2


@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("POST", "/cancel")])
async def test_an_invocation_is_found_by_its_id_or_by_its_session(
    ada: Caller, jobs: Jobs, method: str, rest: str
) -> None:
    made = await invoke(ada)
    invocation, session = made.headers["x-agent-invocation-id"], made.headers["x-agent-session-id"]
    named = f"?agent_session_id={session}&x=y"
    for asked, query in ((invocation, ""), (invocation, named), ("own", named)):
        found = await ada.call(method, f"{AT_AGENT}/{asked}{rest}{query}")
        assert found.json == {"asked": f"{method} /invocations/{asked}{rest}?agent_session_id={session}"}
        assert found.headers["x-agent-session-id"] == session
        assert found.headers["x-agent-invocation-id"] == asked


async def test_an_accepted_invocation_is_on_disk_before_its_caller_knows_it(
    world: World, ada: Caller, jobs: Jobs
) -> None:
    jobs.status = b"202 Accepted"
    invocation = (await invoke(ada)).headers["x-agent-invocation-id"]
    world.references._unwritten.clear()
    assert (await ada.call("GET", f"{AT_AGENT}/{invocation}")).status == 202


async def test_someone_elses_invocation_does_not_exist(application: Application, jobs: Jobs) -> None:
    made = await invoke(application.caller())
    bob = application.caller(BOB)
    invocation, session = made.headers["x-agent-invocation-id"], made.headers["x-agent-session-id"]
    assert (await bob.call("GET", f"{AT_AGENT}/{invocation}")).error == (404, "not_found")
    assert (await bob.call("POST", f"{AT_AGENT}/{invocation}/cancel")).error == (404, "not_found")
    foreign = await bob.call("GET", f"{AT_AGENT}/{invocation}?agent_session_id={session}")
    assert foreign.error == (403, "session_not_accessible")


async def test_an_invocation_that_failed_is_not_remembered(ada: Caller, jobs: Jobs) -> None:
    jobs.status = b"500 Broken"
    failed = await ada.call("POST", AT_AGENT, b"work")
    assert (await ada.call("GET", f"{AT_AGENT}/{failed.headers['x-agent-invocation-id']}")).error == (404, "not_found")


async def test_documents_come_from_a_sandbox_that_runs_or_a_new_one(
    world: World, application: Application, jobs: Jobs
) -> None:
    ada = application.caller()
    for document in ("openapi.json", "asyncapi.json", "asyncapi.yaml"):
        found = await ada.call("GET", f"{AT_AGENT}/docs/{document}")
        assert found.json == {"asked": f"GET /invocations/docs/{document}"}
    assert await world.sandboxes() == 1
    named = await ada.call("GET", f"{AT_AGENT}/docs/openapi.json?agent_session_id=session-1")
    assert named.headers["x-agent-session-id"] == "session-1"
    await application.caller(BOB).call("GET", f"{AT_AGENT}/docs/openapi.json")
    assert await world.sandboxes() == 3


async def test_other_documents_do_not_exist(world: World, ada: Caller, jobs: Jobs) -> None:
    found = await ada.call("GET", f"{AT_AGENT}/docs/secrets.txt")
    assert found.error == (404, "not_found")
    assert "asyncapi.json, asyncapi.yaml, openapi.json" in found.message
    assert await world.sandboxes() == 0


async def test_a_socket_is_not_opened_by_an_ordinary_request(ada: Caller, jobs: Jobs) -> None:
    assert (await ada.call("GET", f"{PROTOCOLS}/invocations_ws")).error == (426, "upgrade_required")
