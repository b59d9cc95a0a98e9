from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

from cupola.domain.version import VersionStatus
from cupola.storage import agents
from tests.unit.api.application import Answer, Application, Caller
from tests.unit.sessions.world import ROOT, World, digest_of, exits

AGENTS = "/api/projects/default/agents"
ECHO = f"{AGENTS}/echo"
VERSIONS = f"{ECHO}/versions"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def body(image: str = "serve", **fields: object) -> dict[str, Any]:
    definition = {"kind": "hosted", "image": f"registry.example.com/{image}:1", "cpu": "0.5", "memory": "1Gi"}
    return {"definition": {**definition, **fields}}


async def settled(caller: Caller, path: str) -> Any:
    """The version once it is no longer being created."""
    async with asyncio.timeout(20):
        while (found := await caller.call("GET", path)).json["status"] == "creating":
            await asyncio.sleep(0.001)
    return found.json


async def deployed(caller: Caller, name: str = "echo", **fields: Any) -> Any:
    """A new version once it is active."""
    made = (await caller.call("POST", f"{AGENTS}/{name}/versions", body(**fields))).json
    found = await settled(caller, f"{AGENTS}/{name}/versions/{made['version']}")
    assert found["status"] == "active"
    return found


def check_version(shown: Any, number: int, status: str) -> None:
    """The shape of an agent version (wire contract, 3.5 and 10)."""
    assert shown["object"] == "agent.version"
    assert (shown["id"], shown["name"], shown["version"]) == (f"echo:{number}", "echo", str(number))
    assert (shown["status"], shown["state"], shown["draft"]) == (status, status, False)
    assert isinstance(shown["created_at"], int)
    assert UUID.fullmatch(shown["agent_guid"])
    assert shown["definition"]["kind"] == "hosted"
    assert shown["instance_identity"]["status"] == shown["blueprint"]["status"] == "active"
    for identity in (shown["instance_identity"], shown["blueprint"]):
        assert UUID.fullmatch(identity["principal_id"])
        assert UUID.fullmatch(identity["client_id"])
    reference = shown["blueprint_reference"]
    assert reference == {
        "type": "ManagedAgentIdentityBlueprint",
        "blueprint_id": shown["blueprint"]["client_id"],
    }


# Creating


async def test_the_first_version_of_an_unknown_name_makes_the_agent(ada: Caller) -> None:
    posted = body(environment_variables={"A": "b"}) | {
        "metadata": {"enableVnextExperience": "true"},
        "description": "D.",
    }
    found = await ada.call("POST", VERSIONS, posted)
    assert found.status == 200
    shown = found.json
    check_version(shown, 1, "creating")
    assert (shown["metadata"], shown["description"]) == ({"enableVnextExperience": "true"}, "D.")
    assert (shown["image_digest"], "error" in shown) == (None, False)
    image = "registry.example.com/serve:1"
    protocols = [{"protocol": "responses", "version": "2.0.0"}]
    assert shown["definition"] == {
        "kind": "hosted",
        "cpu": "0.5",
        "memory": "1Gi",
        "environment_variables": {"A": "b"},
        "container_configuration": {"image": image},
        "protocol_versions": protocols,
        "session_configuration": {"idle_timeout_seconds": 900},
        "image": image,
        "container_protocol_versions": protocols,
    }
    agent = (await ada.call("GET", ECHO)).json
    assert (agent["object"], agent["id"], agent["name"]) == ("agent", "echo", "echo")


async def test_a_version_becomes_active_and_shows_its_digest(ada: Caller) -> None:
    made = (await ada.call("POST", VERSIONS, body())).json
    shown = await settled(ada, f"{VERSIONS}/1")
    check_version(shown, 1, "active")
    assert shown["image_digest"] == digest_of("serve")
    assert {**shown, "status": "", "state": "", "image_digest": ""} == {
        **made,
        "status": "",
        "state": "",
        "image_digest": "",
    }


async def test_a_version_that_fails_shows_why(world: World, ada: Caller) -> None:
    world.programs["broken"] = exits(3, b"no database\n")
    await ada.call("POST", VERSIONS, body("broken"))
    shown = await settled(ada, f"{VERSIONS}/1")
    check_version(shown, 1, "failed")
    assert shown["error"]["code"] == "ContainerNotReady"
    assert "no database" in shown["error"]["message"]


async def test_the_event_log_shows_every_step(ada: Caller) -> None:
    await deployed(ada)
    shown = (await ada.call("GET", f"{VERSIONS}/1/events")).json
    assert (shown["object"], shown["has_more"]) == ("list", False)
    steps = [event["step"] for event in shown["data"]]
    assert (steps[0], steps[-1]) == ("resolve", "active")
    for event in shown["data"]:
        assert set(event) == {"object", "at_ms", "step", "message", "duration_ms", "failed"}
        assert event["object"] == "agent.version.event"


async def test_posting_the_same_again_gives_the_version_that_is_there(world: World, ada: Caller) -> None:
    first = await deployed(ada)
    assert (await ada.call("POST", VERSIONS, body())).json == first
    new_spelling = {
        "definition": {
            "kind": "hosted",
            "container_configuration": {"image": "registry.example.com/serve:1"},
            "cpu": "0.5",
            "memory": "1Gi",
        }
    }
    assert (await ada.call("POST", VERSIONS, new_spelling)).json == first
    assert (await ada.call("POST", VERSIONS, first)).json == first


async def test_posting_the_same_while_it_is_being_made_gives_the_same_version(ada: Caller) -> None:
    posted = await asyncio.gather(*(ada.call("POST", VERSIONS, body()) for _ in range(5)))
    assert {found.json["version"] for found in posted} == {"1"}
    assert (await settled(ada, f"{VERSIONS}/1"))["status"] == "active"


@pytest.mark.parametrize(
    "changed",
    [
        body(cpu="1"),
        body(environment_variables={"A": "b"}),
        body() | {"metadata": {"a": "b"}},
        body() | {"description": "Another."},
        body(image="silent"),
    ],
)
async def test_anything_else_makes_a_new_version(ada: Caller, changed: dict[str, Any]) -> None:
    await deployed(ada)
    check_version((await ada.call("POST", VERSIONS, changed)).json, 2, "creating")


async def test_an_image_that_has_moved_makes_a_new_version(world: World, ada: Caller) -> None:
    await deployed(ada)
    world.images.salt = "moved"
    check_version((await ada.call("POST", VERSIONS, body())).json, 2, "creating")


async def test_a_version_that_failed_can_be_posted_again(world: World, ada: Caller) -> None:
    world.images.missing.add("serve")
    await ada.call("POST", VERSIONS, body())
    assert (await settled(ada, f"{VERSIONS}/1"))["error"]["code"] == "InvalidContainerImage"
    world.images.missing.clear()
    check_version((await ada.call("POST", VERSIONS, body())).json, 2, "creating")


async def test_the_first_generation_makes_agents_by_a_route_of_its_own(ada: Caller) -> None:
    found = await ada.call("POST", AGENTS, {"name": "echo", **body()})
    assert found.status == 200
    shown = found.json
    assert (shown["object"], shown["id"], shown["name"]) == ("agent", "echo", "echo")
    check_version(shown["versions"]["latest"], 1, "creating")
    assert (shown["state"], shown["configuration_state"]) == ("enabled", "enabled")
    assert shown["agent_endpoint"] == {
        "version_selector": {
            "version_selection_rules": [
                {"type": "FixedRatio", "agent_version": "@latest", "traffic_percentage": 100},
            ]
        },
        "protocol_configuration": {"responses": {}},
        "authorization_schemes": [{"type": "Entra"}],
    }
    for key in ("instance_identity", "blueprint", "blueprint_reference"):
        assert shown[key] == shown["versions"]["latest"][key]


async def test_an_agent_that_exists_cannot_be_made_again(ada: Caller) -> None:
    await deployed(ada)
    found = await ada.call("POST", AGENTS, {"name": "echo", **body()})
    assert found.error == (409, "conflict")
    assert "post to /agents/echo/versions" in found.message
    assert (await ada.call("GET", f"{VERSIONS}/2")).status == 404


async def test_an_agent_is_made_once_by_requests_at_once(ada: Caller) -> None:
    posted = await asyncio.gather(*(ada.call("POST", AGENTS, {"name": "echo", **body()}) for _ in range(4)))
    assert sorted(found.status for found in posted) == [200, 409, 409, 409]


async def test_the_first_generation_updates_agents_that_exist(ada: Caller) -> None:
    assert (await ada.call("POST", ECHO, body())).error == (404, "not_found")
    await deployed(ada)
    found = await ada.call("POST", ECHO, body(cpu="1"))
    assert (found.status, found.json["object"]) == (200, "agent")
    check_version(found.json["versions"]["latest"], 2, "creating")


@pytest.mark.parametrize(
    ("posted", "code", "param"),
    [
        ({}, "bad_request", "definition"),
        (b"", "bad_request", "definition"),
        (b"{", "bad_request", None),
        (b"\xff", "bad_request", None),
        (b"[]", "bad_request", None),
        (b'"text"', "bad_request", None),
        (b'{"a": ' + b"[" * 100_000, "bad_request", None),
        (b'{"description": "\\ud800"}', "bad_request", None),
        (b'{"definition": {"kind": "hosted", "image": "a:1", "tools": [NaN]}}', "bad_request", None),
        (b'{"definition": {"kind": "hosted", "image": "a:1", "tools": [1e999]}}', "bad_request", None),
        (body(cpu="9"), "bad_request", "definition.cpu"),
        (body() | {"metadata": {"a": 1}}, "bad_request", "metadata.a"),
        (body() | {"description": 7}, "bad_request", "description"),
        (body() | {"description": "x" * 4097}, "bad_request", "description"),
        ({"definition": {"kind": "prompt"}}, "unsupported_agent_kind", "definition.kind"),
        ({"definition": {"kind": "hosted", "image": "Not An Image"}}, "InvalidContainerImage", "image"),
    ],
)
async def test_a_wrong_body_is_refused_and_makes_nothing(
    ada: Caller, posted: object, code: str, param: str | None
) -> None:
    for path, sent in ((VERSIONS, posted), (AGENTS, posted)):
        found = await ada.call("POST", path, sent)
        assert found.error == (400, code)
        assert found.json["error"]["param"] == param
    assert (await ada.call("GET", ECHO)).status == 404


async def test_every_wrong_field_is_named(ada: Caller) -> None:
    found = await ada.call("POST", VERSIONS, body(cpu="9", memory="1"))
    details = found.json["error"]["details"]
    assert [detail["target"] for detail in details] == ["definition.cpu", "definition.memory"]


@pytest.mark.parametrize("name", ["-a", "a-", "a_b", "a" * 64, "\u00e4"])
async def test_a_wrong_name_is_refused(ada: Caller, name: str) -> None:
    found = await ada.call("POST", f"{AGENTS}/{name}/versions", body())
    assert (found.error, found.json["error"]["param"]) == ((400, "bad_request"), "name")
    assert (await ada.call("POST", AGENTS, {"name": name, **body()})).error == (400, "bad_request")


@pytest.mark.parametrize("name", [None, 7, "", {}])
async def test_a_name_that_is_none_is_refused(ada: Caller, name: object) -> None:
    assert (await ada.call("POST", AGENTS, {"name": name, **body()})).error == (400, "bad_request")


async def test_a_body_that_is_too_large_is_refused(ada: Caller) -> None:
    found = await ada.call("POST", VERSIONS, b'{"a": "' + b"x" * (2 << 20) + b'"}')
    assert found.error == (413, "payload_too_large")


# Images on the server's own machine


async def test_an_administrator_may_use_local_images(application: Application) -> None:
    root = application.caller(ROOT)
    found = await root.call("POST", VERSIONS, {"definition": {"kind": "hosted", "image": "oci:/srv/serve"}})
    assert found.status == 200
    assert (await settled(root, f"{VERSIONS}/1"))["status"] == "active"


@pytest.mark.parametrize("image", ["oci:/srv/a", "oci-archive:/a.tar", "docker-archive:/a.tar", "docker-daemon:a:1"])
async def test_nobody_else_may(ada: Caller, image: str) -> None:
    found = await ada.call("POST", VERSIONS, {"definition": {"kind": "hosted", "image": image}})
    assert found.error == (400, "InvalidContainerImage")
    assert "only administrators may use them; push it to a registry" in found.message
    assert (await ada.call("GET", ECHO)).status == 404


async def test_not_even_administrators_may_when_it_is_switched_off(world: World) -> None:
    root = Application(world, local_images=False).caller(ROOT)
    found = await root.call("POST", VERSIONS, {"definition": {"kind": "hosted", "image": "oci:/srv/a"}})
    assert found.error == (400, "InvalidContainerImage")
    assert "the setting local_images is off" in found.message


# Reading


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (ECHO.replace("echo", "nothing"), "Agent nothing"),
        (f"{AGENTS}/nothing/versions", "Agent nothing"),
        (f"{AGENTS}/nothing/versions/1", "Version 1 of agent nothing"),
        (f"{AGENTS}/nothing/versions/1/events", "Version 1 of agent nothing"),
        (f"{VERSIONS}/2", "Version 2 of agent echo"),
        (f"{VERSIONS}/0", "Version 0 of agent echo"),
        (f"{VERSIONS}/-1", "Version -1 of agent echo"),
        (f"{VERSIONS}/latest", "Version latest of agent echo"),
        (f"{VERSIONS}/\u0661", "Version \u0661 of agent echo"),
        (f"{VERSIONS}/{'9' * 30}", "Version 9999999999999999 of agent echo"),
        (ECHO.replace("default", "other"), "Agent echo"),
        ("/api/projects/default/agentsx", "The path /api/projects/default/agentsx"),
        ("/api/projects/default/", "The path /api/projects/default/"),
        (f"{ECHO}/", "The path /api/projects/default/agents/echo/"),
    ],
)
async def test_what_does_not_exist_is_a_404_that_says_what(world: World, ada: Caller, path: str, said: str) -> None:
    await world.add()
    found = await ada.call("GET", path)
    assert found.error == (404, "not_found")
    assert found.message == f"{said} does not exist."


async def test_a_project_that_does_not_exist_has_a_code_of_its_own(ada: Caller) -> None:
    found = await ada.call("GET", "/api/projects/nowhere/agents")
    assert found.error == (404, "project_not_found")
    assert found.message == "Project nowhere does not exist."


async def test_the_default_project_has_another_name(world: World, ada: Caller) -> None:
    await world.add()
    assert (await ada.call("GET", "/api/projects/_project/agents/echo")).json == (await ada.call("GET", ECHO)).json


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", AGENTS, "GET, HEAD, POST"), ("PATCH", f"{VERSIONS}/1", "DELETE, GET, HEAD"), ("GET", "", "POST")],
)
async def test_a_method_that_is_not_possible_says_which_are(ada: Caller, method: str, path: str, allowed: str) -> None:
    found = await ada.call(method, path or "/api/projects/default/openai/responses")
    assert found.error == (405, "method_not_allowed")
    assert found.message == f"{method} is not possible here; use {allowed}."


@pytest.mark.parametrize(
    ("method", "path"), [("GET", AGENTS), ("POST", VERSIONS), ("DELETE", ECHO), ("GET", "/nothing")]
)
async def test_nobody_is_answered_without_a_token(application: Application, method: str, path: str) -> None:
    found = await application.caller(None).call(method, path)
    assert found.error == (401, "Unauthorized")
    assert found.headers["www-authenticate"] == "Bearer"
    assert found.json["error"]["type"] == "invalid_request_error"


# Lists


async def names(caller: Caller, query: str = "", path: str = AGENTS) -> tuple[list[str], Any]:
    """Ids of a page, and its envelope."""
    found = await caller.call("GET", f"{path}?{query}")
    assert found.status == 200
    page = found.json
    assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}
    assert page["object"] == "list"
    ids = [item["id"] for item in page["data"]]
    assert page["first_id"] == (ids[0] if ids else None)
    # Clients ask for more while there is a last id, and for ever when an empty page has one.
    assert page["last_id"] == (ids[-1] if page["has_more"] else None)
    return ids, page


async def test_an_empty_list_ends_at_once(ada: Caller) -> None:
    assert (await names(ada))[0] == []
    assert (await names(ada))[1]["last_id"] is None


@pytest.mark.parametrize(
    ("query", "expected", "more"),
    [
        ("", ["a4", "a3", "a2", "a1", "a0"], False),
        ("order=asc", ["a0", "a1", "a2", "a3", "a4"], False),
        ("limit=2", ["a4", "a3"], True),
        ("limit=2&after=a3", ["a2", "a1"], True),
        ("limit=2&after=a1", ["a0"], False),
        ("limit=2&after=a0", [], False),
        ("limit=5", ["a4", "a3", "a2", "a1", "a0"], False),
        ("order=asc&after=a2", ["a3", "a4"], False),
        ("before=a2", ["a4", "a3"], False),
        ("after=a4&before=a1", ["a3", "a2"], False),
        ("kind=hosted", ["a4", "a3", "a2", "a1", "a0"], False),
        ("kind=prompt", [], False),
        ("api-version=v1&after=", ["a4", "a3", "a2", "a1", "a0"], False),
    ],
)
async def test_agents_are_listed_in_pages(
    world: World, ada: Caller, query: str, expected: list[str], more: bool
) -> None:
    for number in range(5):
        await world.add(f"a{number}")
    ids, page = await names(ada, query)
    assert (ids, page["has_more"]) == (expected, more)


async def test_versions_are_listed_in_pages(world: World, ada: Caller) -> None:
    for _ in range(5):
        await world.add()
    ids, page = await names(ada, "limit=3", VERSIONS)
    assert (ids, page["last_id"]) == (["echo:5", "echo:4", "echo:3"], "echo:3")
    for cursor in ("echo:3", "echo%3A3"):
        ids, page = await names(ada, f"limit=3&after={cursor}", VERSIONS)
        assert (ids, page["last_id"]) == (["echo:2", "echo:1"], None)
    assert (await names(ada, "order=asc&limit=1", VERSIONS))[0] == ["echo:1"]


async def test_a_list_of_agents_shows_the_latest_version_of_each(world: World, ada: Caller) -> None:
    await world.add("one")
    await world.add("one", status=VersionStatus.FAILED)
    two = await world.add("two")
    await world.database.write(lambda connection: agents.delete_version(connection, two.key))
    _, page = await names(ada)
    latest = {item["name"]: item["versions"]["latest"] for item in page["data"]}
    assert latest["two"] is None
    assert (latest["one"]["version"], latest["one"]["status"]) == ("2", "failed")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit=\u0661", "limit"),
        ("limit=0000019999", "limit"),
        ("limit=1" + "0" * 5000, "limit"),
        ("limit=00000" + "1" * 5000, "limit"),
        ("order=up", "order"),
        ("after=nothing", "after"),
        ("before=nothing", "before"),
    ],
)
@pytest.mark.parametrize("path", [AGENTS, VERSIONS])
async def test_a_page_that_cannot_be_is_refused(world: World, ada: Caller, path: str, query: str, param: str) -> None:
    await world.add()
    found = await ada.call("GET", f"{path}?{query}")
    assert (found.error, found.json["error"]["param"]) == ((400, "bad_request"), param)


# Deleting


async def test_a_version_is_deleted_with_a_body(world: World, ada: Caller) -> None:
    await deployed(ada)
    await deployed(ada, cpu="1")
    found = await ada.call("DELETE", f"{VERSIONS}/2")
    assert (found.status, found.json) == (
        200,
        {"object": "agent.version.deleted", "name": "echo", "version": "2", "deleted": True},
    )
    assert (await ada.call("GET", f"{VERSIONS}/2")).status == 404
    assert (await ada.call("DELETE", f"{VERSIONS}/2")).error == (404, "not_found")
    assert (await ada.call("GET", ECHO)).json["versions"]["latest"]["version"] == "1"
    check_version((await ada.call("POST", VERSIONS, body(cpu="2"))).json, 3, "creating")


async def test_an_agent_is_deleted_with_all_its_versions(world: World, ada: Caller) -> None:
    await deployed(ada)
    await ada.call("POST", VERSIONS, body(image="silent"))
    found = await ada.call("DELETE", ECHO)
    assert (found.status, found.json) == (200, {"object": "agent.deleted", "name": "echo", "deleted": True})
    for path in (ECHO, VERSIONS, f"{VERSIONS}/1"):
        assert (await ada.call("GET", path)).error == (404, "not_found")
    assert (await ada.call("DELETE", ECHO)).error == (404, "not_found")
    assert await world.sandboxes() == 0


async def with_live_session(ada: Caller) -> Answer:
    await deployed(ada)
    found = await ada.call("POST", f"{ECHO}/endpoint/protocols/openai/responses", {"agent_session_id": "session-1"})
    assert found.status == 200
    return found


@pytest.mark.parametrize(("path", "what"), [(ECHO, "Agent echo"), (f"{VERSIONS}/1", "Version echo:1")])
@pytest.mark.parametrize("query", ["", "?force=false", "?force="])
async def test_running_sessions_keep_their_version(world: World, ada: Caller, path: str, what: str, query: str) -> None:
    await with_live_session(ada)
    found = await ada.call("DELETE", f"{path}{query}")
    assert found.error == (409, "conflict")
    assert found.message.startswith(f"{what} has running sessions; wait until they are idle, or pass force=true")
    assert await world.sandboxes() == 1
    assert (await ada.call("GET", f"{VERSIONS}/1")).json["status"] == "active"


@pytest.mark.parametrize("path", [ECHO, f"{VERSIONS}/1"])
@pytest.mark.parametrize("force", ["true", "True"])
async def test_force_ends_running_sessions(world: World, ada: Caller, path: str, force: str) -> None:
    await with_live_session(ada)
    assert (await ada.call("DELETE", f"{path}?force={force}")).status == 200
    assert await world.sandboxes() == 0
    assert list(world.directory.glob("sessions/*")) == []


async def test_a_version_can_be_deleted_while_it_is_being_made(world: World, ada: Caller) -> None:
    await ada.call("POST", VERSIONS, body(image="silent"))
    async with asyncio.timeout(20):
        while await world.sandboxes() == 0:
            await asyncio.sleep(0.001)
    assert (await ada.call("DELETE", f"{VERSIONS}/1")).status == 200
    assert await world.sandboxes() == 0


async def test_deletions_that_were_cut_off_are_finished_at_the_next_start(
    world: World, application: Application
) -> None:
    kept = await world.add()
    await world.add(status=VersionStatus.DELETING)
    await application.agents.finish_deletions()
    left = await world.database.read(lambda connection: agents.versions_of_agent(connection, kept.agent))
    assert left == (kept,)


async def test_posting_and_deleting_at_once_leaves_a_server_that_works(ada: Caller) -> None:
    for _ in range(10):
        await asyncio.gather(
            ada.call("POST", VERSIONS, body()),
            ada.call("POST", VERSIONS, body()),
            ada.call("DELETE", f"{ECHO}?force=true"),
            ada.call("DELETE", f"{ECHO}?force=true"),
        )
    await ada.call("DELETE", f"{ECHO}?force=true")
    assert (await deployed(ada))["status"] == "active"
