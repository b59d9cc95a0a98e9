from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cupola.storage.database import Database
from tests.unit.api.application import Application, Caller
from tests.unit.sessions.test_pool import filled
from tests.unit.sessions.world import ADA, ROOT, World

EGRESS = f"{Application.project}/egress"
NOTHING = {"mode": "none", "names": [], "private_ranges": []}
LISTED = {"mode": "allow-list", "names": ["api.example:443"], "private_ranges": ["10.1.0.0/16"]}


@pytest.fixture
def root(application: Application) -> Caller:
    return application.caller(ROOT)


async def test_a_project_without_a_policy_has_the_default(root: Caller) -> None:
    found = await root.call("GET", EGRESS)
    assert (found.status, found.json) == (200, NOTHING)


async def test_a_policy_is_replaced_and_read(root: Caller) -> None:
    put = await root.call("PUT", EGRESS, LISTED)
    assert (put.status, put.json) == (200, LISTED)
    assert (await root.call("GET", EGRESS)).json == LISTED
    short = await root.call("PUT", EGRESS, {"mode": "open"})
    assert short.json == (await root.call("GET", EGRESS)).json == {**NOTHING, "mode": "open"}
    # Only in its own form is it kept.
    untidy = {
        "mode": "allow-list",
        "names": ["API.example.:443", "api.example:443"],
        "private_ranges": [" 10.1.0.0/16"],
    }
    assert (await root.call("PUT", EGRESS, untidy)).json == LISTED


async def test_projects_have_policies_of_their_own(root: Caller) -> None:
    await root.call("PUT", EGRESS, LISTED)
    assert (await root.call("GET", "/api/projects/other/egress")).json == NOTHING
    assert (await root.call("PUT", "/api/projects/absent/egress", LISTED)).error == (404, "project_not_found")


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_only_administrators(application: Application, ada: Caller, root: Caller, method: str) -> None:
    assert (await ada.call(method, EGRESS, {"mode": "open"})).error == (403, "forbidden")
    assert (await application.caller(None).call(method, EGRESS, {"mode": "open"})).error == (401, "Unauthorized")
    assert (await root.call("GET", EGRESS)).json == NOTHING


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["mode"]),
        ({"mode": "all"}, ["mode"]),
        ({"mode": "open", "names": ["a.example"]}, ["names"]),
        ({"mode": "allow-list", "names": ["a.example", "https://b.example", "10.0.0.1"]}, ["names[1]", "names[2]"]),
        ({"mode": "none", "private_ranges": ["10.0.0.0/8"]}, ["private_ranges"]),
        ({"mode": "open", "private_ranges": ["8.8.8.0/24"], "allow": []}, ["allow", "private_ranges[0]"]),
    ],
)
async def test_what_cannot_be_a_policy_is_refused_whole(root: Caller, body: dict[str, Any], fields: list[str]) -> None:
    await root.call("PUT", EGRESS, LISTED)
    refused = await root.call("PUT", EGRESS, body)
    assert refused.error == (400, "bad_request")
    assert refused.json["error"]["param"] == fields[0]
    assert [detail["param"] for detail in refused.json["error"]["details"]] == fields
    assert (await root.call("GET", EGRESS)).json == LISTED


@pytest.mark.parametrize("body", [b"mode=open", b"[]", b'"open"', b'{"mode": "open"', b"\xff"])
async def test_what_is_no_object_is_refused(root: Caller, body: bytes) -> None:
    assert (await root.call("PUT", EGRESS, body)).error == (400, "bad_request")


async def test_a_session_that_starts_afterwards_has_the_new_policy(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, pool_size=1) as world:
        root = Application(world).caller(ROOT)
        version = await world.add()
        await filled(world, version)
        assert (await root.call("PUT", EGRESS, LISTED)).status == 200
        session, _ = await world.manager.resolve(version.agent, None, None, ADA)
        async with world.manager.running(session, version) as use:
            assert use.agent.sandbox._process.spec.egress.to_json() == LISTED  # type: ignore[attr-defined]
