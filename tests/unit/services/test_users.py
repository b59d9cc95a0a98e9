"""What an agent is told of a request's user, and that it can call back with it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cupola.domain.principal import SandboxPrincipal
from cupola.domain.version import Agent
from cupola.storage import agents, sessions
from tests.unit.api.application import Application, Caller
from tests.unit.gateway.test_invoke import Noted
from tests.unit.sessions.world import ADA, BOB, ROOT, World, program

USER, CALL = "x-agent-user-id", "x-agent-foundry-call-id"
Headers = Iterable[tuple[bytes, bytes]]


@pytest.fixture
async def noted(world: World) -> Noted:
    noted = Noted()
    world.programs["noted"] = program(noted)
    await world.add(image="noted")
    return noted


async def told(noted: Noted, caller: Caller, session: str | None = None, headers: Headers = ()) -> tuple[str, str]:
    """The user and the call id that the agent gets with a request."""
    body = {"input": "x"} if session is None else {"input": "x", "agent_session_id": session}
    path = "/api/projects/default/agents/echo/endpoint/protocols/openai/responses"
    answer = await caller.call("POST", path, body, headers)
    assert answer.status == 200, answer.body
    of_platform = [
        (name.decode(), value.decode()) for name, value in noted.requests[-1].headers if name.startswith(b"x-agent")
    ]
    found = [header for header in of_platform if header[0] != "x-agent-response-id"]
    assert [name for name, _ in found] == [USER, CALL]
    return found[0][1], found[1][1]


async def test_an_agent_is_told_each_user_by_a_key_of_its_own(application: Application, noted: Noted) -> None:
    ada, bob = application.caller(ADA), application.caller(BOB)
    users = [(await told(noted, caller))[0] for caller in (ada, ada, bob)]
    assert users[0] == users[1] != users[2]
    assert all(name not in "".join(users) for name in ("ada", "bob"))


async def test_who_is_acted_for_is_the_user(application: Application, noted: Noted) -> None:
    root = application.caller(ROOT)
    own, other = [
        (await told(noted, root, headers=headers))[0] for headers in ([], [(b"x-ms-user-identity", b"somebody")])
    ]
    assert own != other


async def test_nobody_is_taken_for_another_by_the_headers_it_sends(application: Application, noted: Noted) -> None:
    ada, bob = application.caller(ADA), application.caller(BOB)
    user, call_id = await told(noted, ada)
    forged = [(USER.encode(), user.encode()), (CALL.encode(), call_id.encode())]
    assert (await told(noted, bob, headers=forged))[0] != user


async def test_an_agent_keeps_for_a_user_by_the_call_id_of_a_request(
    world: World, application: Application, noted: Noted
) -> None:
    user, call_id = await told(noted, application.caller(ADA), "session-of-ada")
    agent: Agent = await world.database.read(lambda connection: agents.require_agent(connection, "default", "echo"))
    session = await world.database.read(
        lambda connection: sessions.find_session(connection, agent.key, "session-of-ada")
    )
    assert session is not None
    assert application.call_ids.user(session.guid, call_id) == user
    sandbox = application.caller(SandboxPrincipal("default", agent.key, session.guid))
    path = f"{application.project}/storage/responses"
    kept = await sandbox.call("POST", path, {"response": {"id": "r1"}}, [(CALL.encode(), call_id.encode())])
    assert kept.status == 201
    assert (await sandbox.call("GET", f"{path}/r1")).status == 404
    found = await sandbox.call("GET", f"{path}/r1", headers=[(CALL.encode(), call_id.encode())])
    assert (found.status, found.json) == (200, {"id": "r1", "output": []})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/tasks?limit=0", 400),
        ("GET", "/tasks?limit=x", 400),
        ("GET", "/tasks?before=t1", 400),
        ("GET", "/tasks?order=up", 400),
        ("GET", "/tasks?has_error=perhaps", 400),
        ("GET", "/tasks?tag.a%20b=1", 400),
        ("PATCH", "/tasks/t1?lease_owner=me", 400),
        ("PATCH", "/tasks/t1?lease_owner=a&lease_instance_id=b&lease_duration_seconds=soon", 400),
        ("GET", "/storage/history/item_ids?limit=some", 400),
        ("GET", "/storage/responses/r1/input_items?order=up", 400),
        ("GET", "/storage/state_stores/!!!", 400),
        ("GET", "/storage/state_stores/_w", 400),
        ("GET", "/storage/nothing", 404),
        ("PUT", "/tasks", 405),
    ],
)
async def test_what_cannot_be_understood_is_refused(
    application: Application, method: str, path: str, status: int
) -> None:
    sandbox = application.caller(SandboxPrincipal("default", 1, "0" * 32))
    assert (await sandbox.call(method, application.project + path)).error[0] == status


@pytest.mark.parametrize("path", ["/storage/responses", "/storage/items/batch/retrieve", "/tasks"])
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"item_ids": [1]}', b'{"item_ids": 1, "id": 7}'])
async def test_a_body_that_is_not_as_it_should_be_is_refused(application: Application, path: str, body: bytes) -> None:
    sandbox = application.caller(SandboxPrincipal("default", 1, "0" * 32))
    assert (await sandbox.call("POST", application.project + path, body)).error == (400, "invalid_request")


async def test_a_body_that_is_too_large_is_refused(application: Application) -> None:
    sandbox = application.caller(SandboxPrincipal("default", 1, "0" * 32))
    for path, size in (("/storage/state_stores", 2), ("/tasks", 32)):
        found = await sandbox.call("POST", application.project + path, b" " * (size * 1024 * 1024 + 1))
        assert found.error == (413, "payload_too_large")
