from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cupola.domain.egress import EgressMode, EgressPolicy
from cupola.domain.session import SessionStatus
from cupola.domain.version import Version
from cupola.sandbox.fake import FakeProcess
from cupola.sessions.admission import Limits
from cupola.sessions.lifecycle import Status
from cupola.sessions.manager import Rest
from cupola.sessions.pool import StartedSandbox
from cupola.storage import agents
from cupola.storage.database import Database
from tests.unit.sessions.world import ADA, NEVER_FROZEN, World, exits, program, silent


@pytest.fixture
async def warm(tmp_path: Path, database: Database) -> AsyncIterator[World]:
    async with World(tmp_path, database, pool_size=2) as world:
        yield world


async def filled(world: World, version: Version, count: int = 1) -> None:
    world.pool.expect(version)
    await world.until(lambda: world.pool.counts()[0] == count)


async def test_a_new_session_gets_a_sandbox_that_was_made_ahead(warm: World) -> None:
    ids: list[str] = []

    async def run(process: FakeProcess) -> int:
        ids.append(dict(process.spec.environment)["FOUNDRY_AGENT_SESSION_ID"])
        return await program()(process)

    warm.programs["noting"] = run
    version = await warm.add(image="noting")
    await filled(warm, version)
    session, _ = await warm.manager.resolve(version.agent, None, None, ADA)
    assert [session.id] == ids[:1]
    assert warm.manager.status(session) is SessionStatus.ACTIVE
    async with warm.manager.running(session, version) as use:
        assert (use.tier, use.waited) == ("started", 0.0)
        environment = dict(use.agent.sandbox._process.spec.environment)  # type: ignore[attr-defined]
        assert environment["FOUNDRY_AGENT_SESSION_GUID"] == session.guid
    async with warm.manager.running(session, version) as use:
        assert use.tier == "running"
    assert (warm.directory / "sessions" / session.guid / "home").is_dir()


async def test_a_session_id_of_the_callers_own_is_not_served_from_ahead(warm: World) -> None:
    version = await warm.add()
    await filled(warm, version)
    session = await warm.session(version, "session-1")
    async with warm.manager.running(session, version) as use:
        assert use.tier == "cold"


async def test_sandboxes_ahead_stand_still_until_they_are_claimed(warm: World) -> None:
    version = await warm.add()
    await filled(warm, version)
    (name,) = await warm.driver.names()
    process = warm.driver._sandboxes[name][1]  # type: ignore[attr-defined]
    assert not process.running.is_set()
    session, _ = await warm.manager.resolve(version.agent, None, None, ADA)
    assert process.running.is_set()
    assert await warm.ask(session, version) == b"hello"


async def test_more_are_made_ahead_when_more_are_wanted_up_to_the_limit(warm: World) -> None:
    version = await warm.add()
    await filled(warm, version)
    for _ in range(5):
        await warm.manager.resolve(version.agent, None, None, ADA)
    await warm.until(lambda: warm.pool.counts()[0] == 2)
    await asyncio.sleep(0.05)
    assert warm.pool.counts()[0] == 2


async def test_nothing_is_made_ahead_without_a_pool(world: World) -> None:
    version = await world.add()
    world.pool.expect(version)
    await asyncio.sleep(0.02)
    assert await world.sandboxes() == 0


async def test_a_new_version_replaces_what_was_made_ahead_for_the_old_one(warm: World) -> None:
    first = await warm.add()
    await filled(warm, first)
    second = await warm.add()
    warm.manager.version_activated(second)
    await warm.until(lambda: [pooled.version for pooled in ready(warm)] == [second])
    async with asyncio.timeout(10):
        while await warm.sandboxes() != 1:
            await asyncio.sleep(0.001)
    # The files of the old one go after its sandbox.
    stored = warm.directory / "sessions"
    await warm.until(lambda: list(stored.iterdir()) == [ready(warm)[0].session.directory])


def ready(world: World) -> list[StartedSandbox]:
    return [
        pooled
        for demand in world.pool._demands.values()
        for pooled, _ in demand.started.ready
        if isinstance(pooled, StartedSandbox)
    ]


OPEN = EgressPolicy(EgressMode.OPEN)


def policies(world: World) -> set[EgressMode]:
    """The policies of all sandboxes that there are."""
    processes = [process for _, process in world.driver._sandboxes.values()]  # type: ignore[attr-defined]
    return {process.spec.egress.mode for process in processes}


async def change(world: World, policy: EgressPolicy, project: str = "default") -> None:
    """What the API does."""
    await world.egress.change(project, policy)
    world.pool.renew(project)


async def test_a_new_egress_policy_replaces_what_was_made_ahead(warm: World) -> None:
    versions = [await warm.add(name) for name in ("one", "two")]
    for version in versions:
        warm.pool.expect(version)
    await warm.until(lambda: warm.pool.counts()[0] == 2)
    await change(warm, OPEN)
    assert warm.pool.counts()[0] == 0
    await warm.until(lambda: warm.pool.counts()[0] == 2 and policies(warm) == {EgressMode.OPEN})
    assert await warm.sandboxes() == 2


async def test_the_policy_of_another_project_replaces_nothing(warm: World) -> None:
    await filled(warm, await warm.add())
    before = await warm.driver.names()
    await change(warm, OPEN, "other")
    assert (warm.pool.counts()[0], await warm.driver.names()) == (1, before)


async def test_a_session_keeps_the_egress_policy_it_was_started_with(warm: World) -> None:
    version = await warm.add()
    session = await warm.session(version)
    await warm.ask(session, version)
    await change(warm, OPEN)
    assert await warm.ask(session, version) == b"hello"
    assert policies(warm) >= {EgressMode.NONE}
    await warm.manager.stop_session(session)
    await warm.ask(session, version)
    assert policies(warm) == {EgressMode.OPEN}


async def test_what_is_just_being_made_ahead_does_not_survive_a_new_policy(warm: World) -> None:
    async def run(process: FakeProcess) -> int:
        # Under the old policy it does not become ready before the change.
        return await (silent if process.spec.egress.mode is EgressMode.NONE else program())(process)

    warm.programs["slow"] = run
    version = await warm.add(image="slow")
    warm.pool.expect(version)
    await warm.until(lambda: policies(warm) == {EgressMode.NONE})
    await change(warm, OPEN)
    await warm.until(lambda: warm.pool.counts()[0] == 1)
    assert policies(warm) == {EgressMode.OPEN}


async def test_a_policy_that_was_read_before_its_change_is_not_started_with(warm: World) -> None:
    reading, going = asyncio.Event(), asyncio.Event()
    read = warm.egress.policy

    async def slow(project: str) -> EgressPolicy:
        found = await read(project)
        if found.mode is EgressMode.NONE:
            reading.set()
            await going.wait()
        return found

    object.__setattr__(warm.installation, "egress", slow)
    version = await warm.add()
    warm.pool.expect(version)
    await asyncio.wait_for(reading.wait(), 5)
    await change(warm, OPEN)
    going.set()
    await warm.until(lambda: warm.pool.counts()[0] == 1)
    assert policies(warm) == {EgressMode.OPEN}


async def test_deleting_a_version_removes_what_was_made_ahead_for_it(warm: World) -> None:
    version = await warm.add()
    await filled(warm, version)
    await warm.manager.delete_of_version(version.key)
    async with asyncio.timeout(10):
        while await warm.sandboxes():
            await asyncio.sleep(0.001)


async def test_one_that_died_ahead_is_not_given_out(warm: World) -> None:
    dying = asyncio.Event()

    async def run(process: FakeProcess) -> int:
        serving = asyncio.ensure_future(program()(process))
        await dying.wait()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return 1

    warm.programs["mortal"] = run
    version = await warm.add(image="mortal")
    await filled(warm, version)
    (before,) = await warm.driver.names()
    dying.set()
    await warm.until(lambda: exited(warm, before))
    dying.clear()
    session, _ = await warm.manager.resolve(version.agent, None, None, ADA)
    assert await warm.ask(session, version) == b"hello"


def exited(world: World, name: str) -> bool:
    sandbox, _ = world.driver._sandboxes.get(name, (None, None))  # type: ignore[attr-defined]
    return sandbox is None or bool(sandbox.exited.done())


async def test_an_agent_that_does_not_start_ahead_is_not_tried_all_the_time(
    warm: World, caplog: pytest.LogCaptureFixture
) -> None:
    warm.programs["broken"] = exits(1)
    version = await warm.add(image="broken")
    warm.pool.expect(version)
    await warm.until(lambda: "no sandbox could be made ahead for echo:1" in caplog.text)
    await asyncio.sleep(0.05)
    assert caplog.text.count("could be made ahead") == 1
    assert await warm.sandboxes() == 0
    assert warm.launcher.admission.count == 0


async def test_what_was_made_ahead_for_a_session_that_could_not_be_made_is_removed(warm: World) -> None:
    version = await warm.add()
    await filled(warm, version)
    await warm.database.write(lambda connection: agents.delete_version(connection, version.key))
    with pytest.raises(Exception, match="no version"):
        await warm.manager.resolve(version.agent, None, None, ADA)


async def test_what_was_made_ahead_makes_room_first(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, pool_size=2, limits=Limits(sandboxes=2)) as world:
        version = await world.add()
        await filled(world, version)
        for number in range(2):
            session = await world.session(version, f"session-{number}")
            assert await world.ask(session, version) == b"hello"
        assert world.pool.counts()[0] == 0


# Frozen sandboxes


async def test_an_idle_sandbox_is_frozen_and_wakes_for_the_next_request(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with World(tmp_path, database, rest=Rest(freeze_after=5.0)) as world:
        version = await world.add()
        session = await world.session(version)
        await world.ask(session, version)
        world.age += 5
        await world.until(lambda: world.manager._live[session.key].status is Status.FROZEN)
        assert world.manager.status(session) is SessionStatus.ACTIVE
        async with world.manager.running(session, version) as use:
            assert use.tier == "frozen"
        assert await world.ask(session, version) == b"hello"


async def test_the_frozen_sandbox_that_was_unused_the_longest_makes_room(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, rest=Rest(freeze_after=5.0), limits=Limits(sandboxes=3)) as world:
        version = await world.add()
        made = [await world.session(version, f"session-{number}") for number in range(4)]
        for session in made[:3]:
            await world.ask(session, version)
            world.age += 1
        world.age += 10
        await world.until(lambda: all(live.status is Status.FROZEN for live in world.manager._live.values()))
        assert await world.ask(made[0], version) == b"hello"
        assert await world.ask(made[3], version) == b"hello"
        statuses = [world.manager.status(session) for session in made]
        idle, active = SessionStatus.IDLE, SessionStatus.ACTIVE
        assert statuses == [active, idle, active, active]


async def test_a_full_server_refuses_after_a_while(tmp_path: Path, database: Database) -> None:
    limits = Limits(sandboxes=1, deadline=0.05)
    async with World(tmp_path, database, rest=NEVER_FROZEN, limits=limits) as world:
        version = await world.add()
        first, second = await world.session(version, "session-1"), await world.session(version, "session-2")
        await world.ask(first, version)
        with pytest.raises(Exception, match=r"no sandbox became free within 0\.05 s"):
            await world.ask(second, version)
        await world.manager.stop_session(first)
        assert await world.ask(second, version) == b"hello"
