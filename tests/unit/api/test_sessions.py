from __future__ import annotations

import re
from typing import Any

import pytest

from cupola.domain.session import LIFETIME
from tests.unit.api.application import Application, Caller
from tests.unit.sessions.world import BOB, ROOT, World

SESSIONS = "/api/projects/default/agents/echo/endpoint/sessions"
RESPONSES = "/api/projects/default/agents/echo/endpoint/protocols/openai/responses"


def pinned(number: object) -> dict[str, Any]:
    return {"version_indicator": {"type": "version_ref", "agent_version": number}}


async def test_a_session_is_made_read_used_stopped_and_deleted(world: World, ada: Caller) -> None:
    await world.add()
    made = await ada.call("POST", SESSIONS, {"agent_session_id": "session-1", **pinned("1")})
    now = int(world.now)
    assert made.status == 201
    shown = {
        "object": "agent.session",
        "agent_session_id": "session-1",
        "version_indicator": {"type": "version_ref", "agent_version": "1"},
        "status": "idle",
        "created_at": now,
        "last_accessed_at": now,
        "expires_at": now + LIFETIME,
    }
    assert made.json == shown
    assert (await ada.call("GET", f"{SESSIONS}/session-1")).json == shown
    assert (await ada.call("POST", RESPONSES, {"agent_session_id": "session-1"})).status == 200
    assert (await ada.call("GET", f"{SESSIONS}/session-1")).json == {**shown, "status": "active"}
    world.now += 60
    for _ in range(2):
        stopped = await ada.call("POST", f"{SESSIONS}/session-1:stop")
        assert (stopped.status, stopped.body) == (204, b"")
    later = {"last_accessed_at": now + 60, "expires_at": now + 60 + LIFETIME, "stopped_at": now + 60}
    assert (await ada.call("GET", f"{SESSIONS}/session-1")).json == {**shown, **later}
    for _ in range(2):
        deleted = await ada.call("DELETE", f"{SESSIONS}/session-1")
        assert (deleted.status, deleted.body) == (204, b"")
    assert (await ada.call("GET", f"{SESSIONS}/session-1")).error == (404, "session_not_found")
    assert (await ada.call("POST", f"{SESSIONS}/session-1:stop")).error == (404, "session_not_found")
    assert list((world.directory / "sessions").iterdir()) == []


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_without_an_id_the_platform_makes_one(world: World, ada: Caller, body: bytes) -> None:
    await world.add()
    made = await ada.call("POST", SESSIONS, body)
    assert made.status == 201
    assert re.fullmatch(r"[A-Za-z0-9_-]{8,128}", made.json["agent_session_id"])
    found = await ada.call("POST", RESPONSES, {"agent_session_id": made.json["agent_session_id"]})
    assert found.headers["x-agent-session-id"] == made.json["agent_session_id"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"agent_session_id": "short"}, 400, "bad_request"),
        ({"agent_session_id": 7}, 400, "bad_request"),
        (pinned("@latest"), 400, "bad_request"),
        (pinned(None), 400, "bad_request"),
        (pinned(True), 400, "bad_request"),
        (pinned("9" * 10), 400, "bad_request"),
        ({"version_indicator": "1"}, 400, "bad_request"),
        ({"version_indicator": {"type": "other", "agent_version": "1"}}, 400, "bad_request"),
        (pinned("2"), 404, "not_found"),
        ({"agent_session_id": "session-1"}, 409, "session_already_exists"),
    ],
)
async def test_what_makes_no_session_is_told(world: World, ada: Caller, body: object, status: int, code: str) -> None:
    await world.add()
    await ada.call("POST", SESSIONS, {"agent_session_id": "session-1"})
    assert (await ada.call("POST", SESSIONS, body)).error == (status, code)


async def test_agents_that_do_not_exist_have_no_sessions(world: World, ada: Caller) -> None:
    for method, path in (("POST", SESSIONS), ("GET", SESSIONS), ("DELETE", f"{SESSIONS}/session-1")):
        assert (await ada.call(method, path)).error == (404, "not_found")


async def test_sessions_are_listed_page_by_page(world: World, ada: Caller) -> None:
    await world.add()
    for number in range(5):
        await ada.call("POST", SESSIONS, {"agent_session_id": f"session-{number}"})
    first = (await ada.call("GET", f"{SESSIONS}?limit=2")).json
    assert [one["agent_session_id"] for one in first["data"]] == ["session-4", "session-3"]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, "session-4", "session-3")
    rest = (await ada.call("GET", f"{SESSIONS}?limit=10&after={first['last_id']}")).json
    assert [one["agent_session_id"] for one in rest["data"]] == ["session-2", "session-1", "session-0"]
    assert (rest["has_more"], rest["last_id"]) == (False, None)
    assert (await ada.call("GET", f"{SESSIONS}?after=unknown-id")).error == (400, "bad_request")


async def test_the_sessions_of_others_are_not_there(world: World, application: Application, ada: Caller) -> None:
    await world.add()
    await ada.call("POST", SESSIONS, {"agent_session_id": "session-1"})
    bob, root = application.caller(BOB), application.caller(ROOT)
    assert (await bob.call("GET", SESSIONS)).json["data"] == []
    for method, path in (("GET", "/session-1"), ("POST", "/session-1:stop")):
        assert (await bob.call(method, SESSIONS + path)).error == (404, "session_not_found")
    # As for a session that does not exist: nobody learns which ids others have.
    assert (await bob.call("DELETE", f"{SESSIONS}/session-1")).status == 204
    assert len((await root.call("GET", SESSIONS)).json["data"]) == 1
    assert (await root.call("DELETE", f"{SESSIONS}/session-1")).status == 204


async def test_an_administrator_acts_for_a_user_and_sees_no_more_than_one(
    world: World, application: Application, ada: Caller
) -> None:
    await world.add()
    root = application.caller(ROOT)
    alice, carol = [(b"x-ms-user-identity", b"alice@contoso.com")], [(b"x-ms-user-identity", b"carol@contoso.com")]
    assert (await root.call("POST", SESSIONS, {"agent_session_id": "session-1"}, alice)).status == 201
    used = {"input": "hello", "agent_session_id": "session-1"}
    assert (await root.call("POST", RESPONSES, used, alice)).status == 200
    invented = (await root.call("POST", RESPONSES, {"input": "hello"}, carol)).headers["x-agent-session-id"]
    for user, own, foreign in ((alice, "session-1", invented), (carol, invented, "session-1")):
        listed = (await root.call("GET", SESSIONS, b"", user)).json["data"]
        assert [one["agent_session_id"] for one in listed] == [own]
        assert (await root.call("GET", f"{SESSIONS}/{own}", b"", user)).status == 200
        assert (await root.call("GET", f"{SESSIONS}/{foreign}", b"", user)).error == (404, "session_not_found")
        assert (await root.call("POST", f"{SESSIONS}/{foreign}:stop", b"", user)).error == (404, "session_not_found")
        denied = await root.call("POST", RESPONSES, {"input": "hello", "agent_session_id": foreign}, user)
        assert denied.error == (403, "session_not_accessible")
        assert (await root.call("DELETE", f"{SESSIONS}/{foreign}", b"", user)).status == 204
    assert len((await root.call("GET", SESSIONS)).json["data"]) == 2
    assert (await ada.call("POST", RESPONSES, {"input": "hello"}, alice)).error == (403, "impersonation_not_allowed")
    assert (await ada.call("POST", SESSIONS, {}, alice)).error == (403, "impersonation_not_allowed")


async def test_the_newest_session_is_for_reading_only(world: World, ada: Caller) -> None:
    await world.add()
    await ada.call("POST", SESSIONS, {"agent_session_id": "session-1"})
    assert (await ada.call("POST", f"{SESSIONS}/@newest:stop")).error == (404, "session_not_found")
    assert (await ada.call("DELETE", f"{SESSIONS}/@newest")).status == 204
    assert (await ada.call("GET", f"{SESSIONS}/session-1")).status == 200


async def test_a_session_is_deleted_while_its_sandbox_runs(world: World, ada: Caller) -> None:
    await world.add()
    await ada.call("POST", RESPONSES, {"agent_session_id": "session-1"})
    assert await world.sandboxes() == 1
    assert (await ada.call("DELETE", f"{SESSIONS}/session-1")).status == 204
    assert await world.sandboxes() == 0
    assert list((world.directory / "sessions").iterdir()) == []
    again = await ada.call("POST", RESPONSES, {"agent_session_id": "session-1"})
    assert again.status == 200


async def test_sessions_that_nobody_uses_expire_with_their_files(world: World, ada: Caller) -> None:
    await world.add()
    for session in ("old-session", "used-session"):
        await ada.call("POST", RESPONSES, {"agent_session_id": session})
    world.now += LIFETIME - 100
    await ada.call("POST", RESPONSES, {"agent_session_id": "used-session"})
    world.now += 200
    await world.until_read(lambda: last_used(world, ada), int(world.now) - 200)
    await world.manager.remove_expired()
    assert (await ada.call("GET", f"{SESSIONS}/old-session")).error == (404, "session_not_found")
    assert (await ada.call("GET", f"{SESSIONS}/used-session")).status == 200
    assert len(list((world.directory / "sessions").iterdir())) == 1
    assert await world.sandboxes() == 1


async def last_used(world: World, ada: Caller) -> int:
    return int((await ada.call("GET", f"{SESSIONS}/used-session")).json["last_accessed_at"])


# The policy of an agent


async def test_what_happens_to_sessions_on_a_new_version_can_be_changed(world: World, ada: Caller) -> None:
    await world.add()
    agent = "/api/projects/default/agents/echo"
    assert (await ada.call("GET", agent)).json["session_upgrade"] == "on_idle"
    assert (await ada.call("PATCH", agent, {"session_upgrade": "never"})).json["session_upgrade"] == "never"
    assert (await ada.call("GET", agent)).json["session_upgrade"] == "never"
    assert (await ada.call("PATCH", agent, {"session_upgrade": "soon"})).error == (400, "bad_request")
    assert (await ada.call("PATCH", agent, {"agent_endpoint": {}})).error == (400, "bad_request")


# Metrics


async def test_administrators_read_where_the_time_went(world: World, application: Application, ada: Caller) -> None:
    await world.add()
    await ada.call("POST", RESPONSES, {"agent_session_id": "session-1"})
    text = (await application.caller(ROOT).call("GET", "/metrics")).body.decode()
    assert 'cupola_sandboxes{status="running"} 1.0' in text
    assert "cupola_sandbox_queue 0.0" in text
    assert re.search(r'cupola_invoke_phase_seconds_count{phase="start",tier="cold"} [1-9]', text)
    assert (await ada.call("GET", "/metrics")).error == (403, "forbidden")


async def test_a_refusal_says_where_the_time_went(world: World, ada: Caller) -> None:
    await world.add(image="broken")
    found = await ada.call("POST", RESPONSES, {"agent_session_id": "session-1"})
    assert found.error == (424, "session_not_ready")
    assert re.fullmatch(r"resolve;dur=[0-9.]+", found.headers["server-timing"])
