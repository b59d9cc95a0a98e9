"""Who may call the platform's services, and what of others' they see: nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cupola_agent.call import Caller as User
from cupola_agent.platform.api import Platform
from cupola_agent.stores.base import NotFoundError, StoreError, UnavailableError
from cupola_agent.stores.platform import PlatformResponseStore
from cupola_agent.tasks.base import TaskFilter
from cupola_agent.tasks.platform import PlatformTaskStore

from cupola.domain.principal import SandboxPrincipal
from tests.unit.api.application import Application
from tests.unit.services.platform import Services
from tests.unit.sessions.world import ADA, ROOT
from tests.unit.storage.samples import add_agent

NOBODY, ALICE, BOB = User(), User("alice"), User("bob")
ROUTES = [
    ("POST", "/storage/responses"),
    ("GET", "/storage/responses/r1"),
    ("POST", "/storage/items/batch/retrieve"),
    ("GET", "/storage/history/item_ids"),
    ("GET", "/tasks"),
    ("POST", "/storage/state_stores"),
]


def response(response_id: str, **fields: Any) -> dict[str, Any]:
    output = [{"id": f"out-{response_id}", "type": "message"}]
    return {"id": response_id, "object": "response", "status": "completed", "output": output, **fields}


@pytest.fixture
async def clients(services: Services) -> AsyncIterator[dict[str, Platform]]:
    """Of two sessions of one agent, of another agent, and of an agent of another project."""
    write = services.application.world.database.write
    other = await write(lambda connection: add_agent(connection, "second"))
    foreign = await write(lambda connection: add_agent(connection, "echo", "other"))
    clients = {
        "first": services.client(),
        "second": services.client(SandboxPrincipal("default", services.agent.key, "2" * 32)),
        "other agent": services.client(SandboxPrincipal("default", other.key, "3" * 32)),
        "other project": services.client(SandboxPrincipal("other", foreign.key, "4" * 32)),
    }
    yield clients
    for client in clients.values():
        await client.close()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_people_cannot_call_the_services_of_sandboxes(application: Application, method: str, path: str) -> None:
    for principal in (ADA, ROOT):
        assert (await application.caller(principal).call(method, application.project + path)).status == 404
    assert (await application.caller(None).call(method, application.project + path)).status == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/projects/default/agents", 404),
        ("POST", "/api/projects/default/agents/echo/versions", 404),
        ("POST", "/api/projects/default/openai/v1/responses", 404),
        ("GET", "/api/projects/default/egress", 404),
        ("GET", "/api/projects/other/tasks", 403),
        ("GET", "/metrics", 403),
    ],
)
async def test_a_sandbox_can_call_nothing_but_its_services(
    application: Application, method: str, path: str, status: int
) -> None:
    sandbox = application.caller(SandboxPrincipal("default", 1, "0" * 32))
    assert (await sandbox.call(method, path)).status == status


async def test_a_response_of_a_user_is_read_in_each_session_of_the_project(clients: dict[str, Platform]) -> None:
    first, second, other, foreign = (PlatformResponseStore(client) for client in clients.values())
    await first.create(response("r1"), [], [], ALICE)
    for store in (second, other):
        assert (await store.get("r1", ALICE))["id"] == "r1"
        assert await store.history_item_ids(ALICE, previous_response_id="r1", conversation_id=None) == ["out-r1"]
        for user in (BOB, NOBODY):
            with pytest.raises(NotFoundError):
                await store.get("r1", user)
    with pytest.raises(NotFoundError):
        await foreign.get("r1", ALICE)
    assert await foreign.items(["out-r1"], ALICE) == [None]


async def test_another_agent_does_not_change_what_it_may_read(clients: dict[str, Platform]) -> None:
    first, other = PlatformResponseStore(clients["first"]), PlatformResponseStore(clients["other agent"])
    await first.create(response("r1"), [], [], ALICE)
    for attempt in (other.update(response("r1", status="failed"), ALICE), other.delete("r1", ALICE)):
        with pytest.raises(NotFoundError):
            await attempt
    assert await first.get("r1", ALICE) == response("r1")


async def test_what_a_session_keeps_for_nobody_stays_within_it(clients: dict[str, Platform]) -> None:
    first, second, *_ = (PlatformResponseStore(client) for client in clients.values())
    await first.create(response("r1", conversation="c1"), [], [], NOBODY)
    assert (await first.get("r1", ALICE))["id"] == "r1"
    for user in (NOBODY, ALICE):
        with pytest.raises(NotFoundError):
            await second.get("r1", user)
        assert await second.items(["out-r1"], user) == [None]
        assert await second.history_item_ids(user, previous_response_id=None, conversation_id="c1") == []


async def test_each_project_has_response_ids_of_its_own(clients: dict[str, Platform]) -> None:
    for name in ("first", "other project"):
        await PlatformResponseStore(clients[name]).create(response("r1", model=name), [], [], ALICE)
    assert (await PlatformResponseStore(clients["first"]).get("r1", ALICE))["model"] == "first"


async def test_each_session_has_tasks_of_its_own(clients: dict[str, Platform]) -> None:
    fields = {"id": "t1", "agent_name": "echo", "session_id": "s"}
    stores = [PlatformTaskStore(client) for client in clients.values()]
    for number, store in enumerate(stores):
        await store.create({**fields, "payload": number})
    assert [(await store.get("t1")).payload for store in stores] == [0, 1, 2, 3]
    await stores[0].delete("t1", force=True)
    assert [len((await store.list(TaskFilter())).tasks) for store in stores] == [0, 1, 1, 1]
    with pytest.raises(NotFoundError):
        await stores[0].get("t1")


async def test_sessions_of_an_agent_share_its_state_and_other_agents_do_not(clients: dict[str, Platform]) -> None:
    for name in ("first", "other agent", "other project"):
        reply = await clients[name].call("POST", "/storage/state_stores", body={"name": "notes"})
        assert reply.status == 201
    with pytest.raises(StoreError) as taken:
        await clients["second"].call("POST", "/storage/state_stores", body={"name": "notes"})
    assert (taken.value.status, taken.value.code) == (409, "already_exists")


async def test_a_call_id_of_another_session_is_refused(services: Services, clients: dict[str, Platform]) -> None:
    ids = services.application.call_ids
    stolen = ids.issue("2" * 32, "alice")
    for call_id in (stolen, "nonsense", stolen[:-4]):
        with pytest.raises(UnavailableError) as refused:
            await clients["first"].call("GET", "/storage/responses/r1", caller=User("", call_id))
        assert (refused.value.status, refused.value.code) == (401, "invalid_call_id")


async def test_a_session_whose_agent_is_gone_keeps_nothing(services: Services) -> None:
    client = services.client(SandboxPrincipal("default", services.agent.key + 1, "5" * 32))
    for path, body in (
        ("/storage/responses", {"response": response("r1")}),
        ("/tasks", {"agent_name": "echo", "session_id": "s"}),
        ("/storage/state_stores", {"name": "notes"}),
    ):
        with pytest.raises(NotFoundError):
            await client.call("POST", path, body=body)
    await client.close()


async def test_of_many_who_create_one_response_one_does(services: Services) -> None:
    store = PlatformResponseStore(services.client())
    results = await asyncio.gather(
        *(store.create(response("r1", n=number), [], [], ALICE) for number in range(20)), return_exceptions=True
    )
    assert [getattr(result, "status", 201) for result in results if result is None] == [201]
    assert sum(isinstance(result, StoreError) and result.code == "already_exists" for result in results) == 19
    await store.close()
