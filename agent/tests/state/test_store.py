"""How agent code meets its state: which store it gets, and what the platform is told."""

from pathlib import Path
from typing import Any

import pytest
from cupola_agent.call import Caller, call_scope, current_call
from cupola_agent.state import StateStore, UnavailableError

from agent.tests.fake_platform import Answer, Fault, running_platform

ALICE = Caller("alice", "alice:1", "request-1")


async def test_outside_a_platform_values_are_kept_below_the_state_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FOUNDRY_HOSTING_ENVIRONMENT", raising=False)
    monkeypatch.setenv("AGENTSERVER_STATE_ROOT", str(tmp_path / "root"))
    async with StateStore("notes") as store:
        await store.put("k", {"n": 1})
    assert (tmp_path / "root" / "state.sqlite").is_file()
    async with StateStore("notes") as store:
        assert await store.get("k") == {"n": 1}


async def test_a_store_can_be_used_again_after_it_was_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSERVER_STATE_ROOT", str(tmp_path))
    store = StateStore("notes")
    await store.close()
    await store.put("k", {"n": 1})
    await store.close()
    assert await store.get("k") == {"n": 1}
    await store.close()


async def test_inside_a_platform_it_keeps_the_values_and_knows_the_user_by_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_platform(tmp_path) as fake:
        for name, value in fake.variables.items():
            monkeypatch.setenv(name, value)
        async with StateStore("a/b", user_isolation=True) as store:
            with call_scope(ALICE):
                await store.put("the key", {"n": 1})
                assert await store.get("the key") == {"n": 1}
        written, read = fake.calls("/items/")
        assert written.path == "/api/projects/test/storage/state_stores/YS9i/items/dGhlIGtleQ"
        for call in (written, read):
            assert call.headers["x-agent-foundry-call-id"] == "alice:1"
            assert "x-ms-user-id" not in call.headers


async def test_a_user_named_by_the_agent_is_named_to_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_platform(tmp_path) as fake:
        for name, value in fake.variables.items():
            monkeypatch.setenv(name, value)
        async with StateStore("s", user_isolation=True, user_id="carol") as store:
            await store.put("k", {}, if_match=None)
            assert [key async for key in store.keys()] == ["k"]  # noqa: SIM118
        assert [call.headers["x-ms-user-id"] for call in fake.calls("/items")] == ["carol", "carol"]


async def test_an_answer_of_another_shape_is_the_platforms_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_platform(tmp_path) as fake:
        for name, value in fake.variables.items():
            monkeypatch.setenv(name, value)
        async with StateStore("s") as store:
            await store.info()
            bodies: list[Any] = [None, [], {"id": "x"}, {"data": [1]}]
            for body in bodies:
                fake.faults.append(Fault("/items", Answer(200, body)))
                with pytest.raises(UnavailableError):
                    await store.get("k")
                fake.faults.append(Fault("/items:keys", Answer(200, body)))
                with pytest.raises(UnavailableError):
                    await store.page()


def test_the_caller_counts_inside_its_scope_only() -> None:
    assert current_call() == Caller()
    with call_scope(ALICE):
        assert current_call() == ALICE
        with call_scope(Caller("bob")):
            assert current_call().user_id == "bob"
        assert current_call() == ALICE
    assert current_call() == Caller()
