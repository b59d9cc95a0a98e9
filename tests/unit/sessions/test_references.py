from __future__ import annotations

import asyncio

import pytest

from cupola.domain.principal import Principal
from cupola.domain.session import LIFETIME
from cupola.sessions import references as module
from cupola.sessions.references import References
from cupola.storage.references import ReferenceKind
from tests.unit.sessions.world import ADA, BOB, ROOT, World

RESPONSE, INVOCATION, CONVERSATION = ReferenceKind


async def after_a_restart(world: World) -> References:
    """What another process would know."""
    return References(world.database, lambda: world.now)


async def test_an_id_is_known_at_once_and_on_disk_a_moment_later(world: World) -> None:
    session = await world.session(await world.add())
    world.references.remember(RESPONSE, "r-1", ADA, session)
    assert await world.references.find(RESPONSE, "r-1", ADA) == session.key
    later = await after_a_restart(world)
    await world.until_read(lambda: later.find(RESPONSE, "r-1", ADA), session.key)
    assert await world.references.find(RESPONSE, "r-1", ADA) == session.key
    assert await later.find(RESPONSE, "r-2", ADA) is None
    assert await later.find(INVOCATION, "r-1", ADA) is None


async def test_a_recorded_id_survives_a_crash_right_after(world: World) -> None:
    session = await world.session(await world.add())
    await world.references.record(RESPONSE, "r-1", ADA, session)
    assert await (await after_a_restart(world)).find(RESPONSE, "r-1", ADA) == session.key


async def test_what_is_in_memory_is_written_when_the_server_stops(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITE_INTERVAL", 60.0)
    session = await world.session(await world.add())
    await asyncio.sleep(module.WRITE_INTERVAL / 100)
    world.references.remember(RESPONSE, "r-1", ADA, session)
    await world.stop()
    assert await (await after_a_restart(world)).find(RESPONSE, "r-1", ADA) == session.key


@pytest.mark.parametrize("written", [False, True])
async def test_an_id_means_something_to_its_owner_and_to_administrators(world: World, written: bool) -> None:
    echo = await world.add()
    other = await world.add("other")
    session = await world.session(echo)
    if written:
        await world.references.record(RESPONSE, "r-1", ADA, session)
    else:
        world.references.remember(RESPONSE, "r-1", ADA, session)
    expected: list[tuple[Principal, int | None, int | None]] = [
        (ADA, None, session.key),
        (ADA, echo.agent.key, session.key),
        (ADA, other.agent.key, None),
        (BOB, None, None),
        (ROOT, None, session.key),
    ]
    for caller, agent, key in expected:
        assert await world.references.find(RESPONSE, "r-1", caller, agent) == key


async def test_a_conversation_is_bound_once_for_each_user_and_agent(world: World) -> None:
    version = await world.add()
    first, second = await world.session(version, "session-1"), await world.session(version, "session-2")
    bobs = await world.session(version, "session-3", BOB)
    assert await world.references.bind("c", ADA, first) == first.key
    assert await world.references.bind("c", ADA, second) == first.key
    assert await world.references.bind("c", BOB, bobs) == bobs.key
    assert await world.references.find(CONVERSATION, "c", ADA, version.agent.key) == first.key
    assert await world.references.find(CONVERSATION, "c", ROOT, version.agent.key) is None


async def test_ids_go_with_their_session(world: World) -> None:
    version = await world.add()
    session = await world.session(version)
    await world.references.record(RESPONSE, "r-1", ADA, session)
    await world.references.bind("c", ADA, session)
    await world.manager.delete(session)
    assert await world.references.find(RESPONSE, "r-1", ADA) is None
    assert await world.references.find(CONVERSATION, "c", ADA, version.agent.key) is None
    await world.references.record(RESPONSE, "r-2", ADA, session)
    assert await world.references.find(RESPONSE, "r-2", ADA) is None


async def test_ids_are_forgotten_after_the_lifetime_of_a_session_but_conversations_are_not(world: World) -> None:
    version = await world.add()
    session = await world.session(version)
    await world.references.record(RESPONSE, "old", ADA, session)
    await world.references.bind("c", ADA, session)
    world.now += LIFETIME
    await world.references.record(RESPONSE, "new", ADA, session)
    world.now += 1
    await world.references.remove_expired()
    assert await world.references.find(RESPONSE, "old", ADA) is None
    assert await world.references.find(RESPONSE, "new", ADA) == session.key
    assert await world.references.find(CONVERSATION, "c", ADA, version.agent.key) == session.key


async def test_what_waits_to_be_written_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNWRITTEN_LIMIT", 3)
    session = await world.session(await world.add())
    references = await after_a_restart(world)
    for number in range(5):
        references.remember(RESPONSE, f"r-{number}", ADA, session)
    known = [await references.find(RESPONSE, f"r-{number}", ADA) is not None for number in range(5)]
    assert known == [False, False, True, True, True]
