from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from sqlalchemy import Connection

from cupola.domain.errors import CupolaError
from cupola.domain.session import SessionStatus, SessionUpgrade
from cupola.domain.version import Version, VersionStatus
from cupola.sandbox.fake import FakeProcess, Program
from cupola.sandbox.http import AgentConnectionError
from cupola.sessions import manager as module
from cupola.sessions.lifecycle import Status
from cupola.storage import agents
from cupola.storage.database import Database
from cupola.telemetry.output import read_entries
from tests.unit.sandbox.servers import Peer, Request, answer
from tests.unit.sessions.world import ADA, BOB, ROOT, Die, World, exits, program, refused


class Counted:
    """A program that counts its starts, and whose readiness waits until it is let go."""

    def __init__(self, inner: Program | None = None) -> None:
        self.starts = 0
        self.go = asyncio.Event()
        self._inner = inner or program()

    async def __call__(self, process: FakeProcess) -> int:
        self.starts += 1
        await self.go.wait()
        return await self._inner(process)


def messages(world: World, guid: str) -> list[str]:
    return [json.loads(entry)["message"] for entry in read_entries(world.directory / "sessions" / guid / "logs", 100)]


# Which session and version


async def test_a_session_id_that_is_unknown_makes_a_session(world: World) -> None:
    version = await world.add()
    session, found = await world.manager.resolve(version.agent, "session-1", None, ADA)
    assert (session.id, session.owner, session.pinned, found) == ("session-1", ADA.id, False, version)
    assert world.manager.status(session) is SessionStatus.IDLE
    again, _ = await world.manager.resolve(version.agent, "session-1", None, ADA)
    assert again == session


async def test_every_request_without_a_session_id_makes_a_session(world: World) -> None:
    version = await world.add()
    made = [(await world.manager.resolve(version.agent, None, None, ADA))[0] for _ in range(3)]
    assert len({session.id for session in made}) == 3


async def test_requests_at_once_for_a_new_session_id_share_one_session(world: World) -> None:
    version = await world.add()
    made = await asyncio.gather(*(world.manager.resolve(version.agent, "session-1", None, ADA) for _ in range(8)))
    assert len({session.guid for session, _ in made}) == 1


async def test_the_session_of_someone_else_is_refused(world: World) -> None:
    version = await world.add()
    session = await world.session(version, caller=ADA)
    async with refused("session_not_accessible", 403):
        await world.manager.resolve(version.agent, session.id, None, BOB)
    assert (await world.manager.resolve(version.agent, session.id, None, ROOT))[0] == session


async def test_two_agents_may_have_sessions_of_the_same_id(world: World) -> None:
    one, two = await world.add("one"), await world.add("two")
    assert (await world.session(one)).guid != (await world.session(two, caller=BOB)).guid


async def test_a_session_without_a_sandbox_follows_the_newest_version_and_keeps_its_files(world: World) -> None:
    first = await world.add()
    session, _ = await world.manager.resolve(first.agent, "session-1", None, ADA)
    second = await world.add()
    followed, version = await world.manager.resolve(first.agent, "session-1", None, ADA)
    assert (followed.guid, followed.version_key, version) == (session.guid, second.key, second)
    stored = await world.stored_session(first.agent, "session-1")
    assert stored == followed


async def test_a_session_with_a_sandbox_stays_on_its_version_until_that_is_stopped(world: World) -> None:
    first = await world.add()
    session = await world.session(first, "session-1")
    session, _ = await world.manager.resolve(first.agent, "session-2", None, ADA)
    await world.ask(session, first)
    second = await world.add()
    assert await world.manager.resolve(first.agent, "session-2", None, ADA) == (session, first)
    await world.manager.stop_session(session)
    followed, version = await world.manager.resolve(first.agent, "session-2", None, ADA)
    assert (followed.guid, version) == (session.guid, second)
    await world.ask(followed, version)
    assert messages(world, session.guid)[-2] == "Starting the sandbox on version 2."


async def test_a_session_on_a_version_asked_for_stays_on_it(world: World) -> None:
    first = await world.add()
    session, _ = await world.manager.resolve(first.agent, "session-1", 1, ADA)
    second = await world.add()
    assert session.pinned
    assert (await world.manager.resolve(first.agent, "session-1", None, ADA)) == (session, first)
    assert (await world.manager.resolve(first.agent, "session-1", second.number, ADA)) == (session, first)
    assert (await world.manager.resolve(first.agent, "session-2", None, ADA))[1] == second


async def set_policy(world: World, version: Version, policy: SessionUpgrade) -> Version:
    await world.database.write(lambda connection: agents.set_session_upgrade(connection, version.agent, policy))
    return await world.version(version)


async def test_a_policy_of_never_keeps_every_session_on_its_version(world: World) -> None:
    first = await set_policy(world, await world.add(), SessionUpgrade.NEVER)
    session, _ = await world.manager.resolve(first.agent, "session-1", None, ADA)
    await world.add()
    assert (await world.manager.resolve(first.agent, "session-1", None, ADA)) == (session, first)


async def test_a_policy_of_drain_stops_sandboxes_of_older_versions_once_they_are_unused(world: World) -> None:
    first = await set_policy(world, await world.add(), SessionUpgrade.DRAIN)
    idle, _ = await world.manager.resolve(first.agent, "session-1", None, ADA)
    used, _ = await world.manager.resolve(first.agent, "session-2", None, ADA)
    pinned, _ = await world.manager.resolve(first.agent, "session-3", 1, ADA)
    for session in (idle, pinned):
        await world.ask(session, first)
    async with world.manager.running(used, first):
        second = await world.add()
        world.manager.version_activated(second)
        await world.until(lambda: world.manager.status(idle) is SessionStatus.IDLE)
        assert world.manager.status(used) is SessionStatus.ACTIVE
        # Whoever comes while it is used still gets the sandbox that is there.
        assert (await world.manager.resolve(first.agent, "session-2", None, ADA))[1] == first
    assert (await world.manager.resolve(first.agent, "session-2", None, ADA))[1] == second
    await world.until(lambda: world.manager.status(used) is SessionStatus.IDLE)
    assert world.manager.status(pinned) is SessionStatus.ACTIVE


@pytest.mark.parametrize("newest", [VersionStatus.CREATING, VersionStatus.FAILED, VersionStatus.DELETING])
async def test_a_new_session_gets_the_newest_version_that_can_serve(world: World, newest: VersionStatus) -> None:
    active = await world.add()
    await world.add(status=newest)
    assert (await world.manager.resolve(active.agent, None, None, ADA))[1] == active


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (VersionStatus.CREATING, "agent_version_not_ready"),
        (VersionStatus.FAILED, "agent_version_failed"),
        (VersionStatus.DELETING, "agent_version_deleting"),
    ],
)
async def test_a_version_that_cannot_serve_makes_no_session(world: World, status: VersionStatus, code: str) -> None:
    await world.add()
    version = await world.add(status=status)
    async with refused(code, 400):
        await world.manager.resolve(version.agent, "session-1", version.number, ADA)
    assert await world.stored_session(version.agent, "session-1") is None


async def test_the_reason_of_the_only_version_is_told_when_it_cannot_serve(world: World) -> None:
    version = await world.add(status=VersionStatus.FAILED)
    async with refused("agent_version_failed", 400):
        await world.manager.resolve(version.agent, None, None, ADA)


async def test_an_agent_without_versions_and_a_version_that_does_not_exist_are_told(world: World) -> None:
    version = await world.add()
    async with refused("not_found", 404):
        await world.manager.resolve(version.agent, None, 9, ADA)
    await world.database.write(lambda connection: agents.delete_version(connection, version.key))
    async with refused("agent_version_not_ready", 400):
        await world.manager.resolve(version.agent, None, None, ADA)


async def test_an_agent_that_was_deleted_meanwhile_is_not_found(world: World) -> None:
    version = await world.add()

    def delete(connection: Connection) -> None:
        agents.delete_agent(connection, version.agent)

    resolving = asyncio.ensure_future(world.manager.resolve(version.agent, "session-1", None, ADA))
    await world.database.write(delete)
    outcome = (await asyncio.gather(resolving, return_exceptions=True))[0]
    if isinstance(outcome, CupolaError):
        assert outcome.status in (400, 404)
    else:
        # It was in time; the deletion has taken the session along.
        assert await world.stored_session(version.agent, "session-1") is None


# Starts


async def test_a_request_starts_the_sandbox_and_the_next_one_uses_it(world: World) -> None:
    counted = world.programs["counted"] = Counted()
    counted.go.set()
    version = await world.add(image="counted")
    session = await world.session(version)
    assert [await world.ask(session, version, body) for body in (b"one", b"two")] == [b"one", b"two"]
    assert (counted.starts, await world.sandboxes()) == (1, 1)
    assert world.manager.status(session) is SessionStatus.ACTIVE


async def test_requests_at_once_share_one_start(world: World) -> None:
    counted = world.programs["counted"] = Counted()
    version = await world.add(image="counted")
    session = await world.session(version)
    asking = [asyncio.ensure_future(world.ask(session, version, b"%d" % number)) for number in range(10)]
    await world.until(lambda: counted.starts == 1)
    counted.go.set()
    assert await asyncio.gather(*asking) == [b"%d" % number for number in range(10)]
    assert counted.starts == 1


async def test_sessions_have_sandboxes_of_their_own(world: World) -> None:
    version = await world.add()
    made = [await world.session(version, f"session-{number}") for number in range(3)]
    await asyncio.gather(*(world.ask(session, version) for session in made))
    assert await world.sandboxes() == 3


async def test_a_client_that_leaves_does_not_undo_the_start(world: World) -> None:
    counted = world.programs["counted"] = Counted()
    version = await world.add(image="counted")
    session = await world.session(version)
    leaving = asyncio.ensure_future(world.ask(session, version))
    staying = asyncio.ensure_future(world.ask(session, version))
    await world.until(lambda: counted.starts == 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    counted.go.set()
    assert await staying == b"hello"
    assert counted.starts == 1


async def test_a_start_goes_on_when_every_client_has_left(world: World) -> None:
    counted = world.programs["counted"] = Counted()
    version = await world.add(image="counted")
    session = await world.session(version)
    leaving = asyncio.ensure_future(world.ask(session, version))
    await world.until(lambda: counted.starts == 1)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    counted.go.set()
    assert await world.ask(session, version) == b"hello"
    assert counted.starts == 1


async def test_a_start_that_fails_tells_why_and_the_next_request_tries_again(world: World) -> None:
    world.programs["moody"] = exits(1, b"no database\n", b"giving up")
    version = await world.add(image="moody")
    session = await world.session(version)
    async with refused("session_not_ready", 424) as errors:
        await world.ask(session, version)
    assert errors[0].message == (
        "The container exited with code 1 before it was ready. Its last output:\nno database\ngiving up"
    )
    assert await world.sandboxes() == 0
    assert not world.manager.has_live_sessions(version.key)
    world.programs["moody"] = program()
    assert await world.ask(session, version) == b"hello"
    assert messages(world, session.guid)[:4] == [
        "Starting the sandbox on version 1.",
        "no database",
        "giving up",
        "Start failed: The container exited with code 1 before it was ready.",
    ]


async def test_all_requests_of_a_failed_start_are_told(world: World) -> None:
    counted = world.programs["counted"] = Counted(exits(1))
    version = await world.add(image="counted")
    session = await world.session(version)
    asking = [asyncio.ensure_future(world.ask(session, version)) for _ in range(3)]
    await world.until(lambda: counted.starts == 1)
    counted.go.set()
    outcomes = await asyncio.gather(*asking, return_exceptions=True)
    assert [getattr(outcome, "code", None) for outcome in outcomes] == ["session_not_ready"] * 3
    assert counted.starts == 1


async def test_an_image_that_is_no_longer_stored_is_told(world: World) -> None:
    version = await world.add()
    session = await world.session(version)
    world.images.stored.clear()
    async with refused("session_not_ready", 424) as errors:
        await world.ask(session, version)
    assert "The image of version echo:1 is no longer stored; deploy it again." in errors[0].message


async def test_a_failure_that_nobody_foresaw_is_told_by_its_reference_only(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    version = await world.add()
    session = await world.session(version)
    (world.directory / "sessions" / session.guid).mkdir(parents=True)
    (world.directory / "sessions" / session.guid / "home").write_text("in the way")
    async with refused("session_not_ready", 424) as errors:
        await world.ask(session, version)
    (record,) = [record for record in caplog.records if record.exc_info]
    reference = record.getMessage().rpartition(" ")[2]
    assert f"the server's log has it under {reference}" in errors[0].message
    assert "in the way" not in errors[0].message
    assert await world.sandboxes() == 0


# Ends


async def dies(peer: Peer, head: Request) -> None:
    """Ends its container when asked to."""
    if await peer.body(head) == b"die":
        raise Die
    await peer.send(answer(b"alive"))


async def test_a_sandbox_that_died_is_started_anew_by_the_next_request(world: World) -> None:
    world.programs["mortal"] = program(dies)
    version = await world.add(image="mortal")
    session = await world.session(version)
    for _ in range(2):
        with pytest.raises(AgentConnectionError):
            await world.ask(session, version, b"die")
        assert await asyncio.wait_for(ask_until_alive(world, version), 20) == b"alive"
    assert await world.sandboxes() == 1
    assert "The container exited with code 1." in messages(world, session.guid)


async def ask_until_alive(world: World, version: Version) -> bytes:
    session = await world.session(version)
    while True:
        try:
            return await world.ask(session, version)
        except AgentConnectionError:
            await asyncio.sleep(0.001)


async def test_a_sandbox_that_died_by_itself_is_cleaned_up(world: World) -> None:
    ending = asyncio.Event()

    async def run(process: FakeProcess) -> int:
        serving = asyncio.ensure_future(program()(process))
        await ending.wait()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return 7

    world.programs["mortal"] = run
    version = await world.add(image="mortal")
    session = await world.session(version)
    await world.ask(session, version)
    assert world.manager.has_live_sessions(version.key)
    ending.set()
    await world.until(lambda: not world.manager.has_live_sessions(version.key))
    assert await world.sandboxes() == 0
    assert messages(world, session.guid)[-1] == "The container exited with code 7."


async def test_a_session_that_is_idle_for_long_is_stopped_and_keeps_its_files(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_CHECK_INTERVAL", 0.001)
    async with World(tmp_path, database) as world:
        await idle_and_back(world)


async def idle_and_back(world: World) -> None:
    version = await world.add(session_configuration={"idle_timeout_seconds": 120})
    session = await world.session(version)
    await world.ask(session, version)
    home = world.directory / "sessions" / session.guid / "home"
    (home / "note").write_text("kept")
    world.age += 121
    await world.until(lambda: not world.manager.has_live_sessions(version.key))
    assert await world.sandboxes() == 0
    assert (home / "note").read_text() == "kept"
    stored = await world.stored_session(version.agent, session.id)
    assert stored is not None
    assert stored.stopped_at == int(world.now)
    assert world.manager.status(stored) is SessionStatus.IDLE
    assert messages(world, session.guid)[-1] == "The sandbox was stopped."
    assert await world.ask(session, version) == b"hello"


@pytest.mark.parametrize(("timeout", "idle"), [(120, 119), (0, 1_000_000)])
async def test_a_session_is_not_stopped_before_its_time(world: World, timeout: int, idle: int) -> None:
    version = await world.add(session_configuration={"idle_timeout_seconds": timeout})
    session = await world.session(version)
    await world.ask(session, version)
    world.age += idle - 1
    world.manager._put_to_rest()
    assert world.manager.status(session) is SessionStatus.ACTIVE
    assert world.manager._live[session.key].status is Status.RUNNING


async def test_a_session_that_works_is_not_idle(world: World) -> None:
    version = await world.add()
    session = await world.session(version)
    async with world.manager.running(session, version):
        world.age += 4000
        world.manager._put_to_rest()
        assert world.manager._live[session.key].status is Status.RUNNING
    world.manager._put_to_rest()
    assert world.manager._live[session.key].status is Status.RUNNING


async def test_a_request_that_lasts_too_long_does_not_keep_a_sandbox_awake(world: World) -> None:
    version = await world.add()
    session = await world.session(version)
    async with world.manager.running(session, version):
        world.age += 4 * 3600 + 901
        world.manager._put_to_rest()
        assert world.manager._live[session.key].status is Status.STOPPING


async def test_a_request_during_a_stop_waits_and_gets_a_new_sandbox(world: World) -> None:
    version = await world.add()
    session = await world.session(version)
    await world.ask(session, version)
    world.manager._live[session.key].stop_soon()
    assert world.manager._live[session.key].status is Status.STOPPING
    assert await world.ask(session, version) == b"hello"
    assert messages(world, session.guid)[2] == "The sandbox was stopped."
    assert await world.sandboxes() == 1


async def test_a_session_that_is_stopped_while_it_starts_tells_its_requests(world: World) -> None:
    counted = world.programs["counted"] = Counted()
    version = await world.add(image="counted")
    session = await world.session(version)
    asking = asyncio.ensure_future(world.ask(session, version))
    await world.until(lambda: counted.starts == 1)
    await world.manager.delete_of_version(version.key)
    async with refused("session_stopped", 409):
        await asking
    assert await world.sandboxes() == 0


async def test_the_end_of_the_server_stops_all_sandboxes_and_refuses_new_ones(world: World) -> None:
    version = await world.add()
    made = [await world.session(version, f"session-{number}") for number in range(3)]
    await asyncio.gather(*(world.ask(session, version) for session in made))
    await world.stop()
    assert await world.sandboxes() == 0
    async with refused("shutting_down", 503):
        await world.ask(made[0], version)


async def test_the_end_of_the_server_cuts_a_start_off(world: World) -> None:
    version = await world.add(image="silent")
    session = await world.session(version)
    asking = asyncio.ensure_future(world.ask(session, version))
    await world.until(lambda: world.manager.has_live_sessions(version.key))
    await world.stop()
    outcome = (await asyncio.gather(asking, return_exceptions=True))[0]
    assert getattr(outcome, "code", outcome) in ("session_stopped", "shutting_down")
    assert await world.sandboxes() == 0


async def test_before_it_runs_the_manager_refuses(database: Database, tmp_path: Path) -> None:
    world = World(tmp_path, database)
    version = await world.add()
    session = await world.session(version)
    async with refused("shutting_down", 503):
        await world.ask(session, version)


# Deletion and logs


async def test_files_of_a_session_that_is_gone_are_removed_at_the_next_start(
    database: Database, tmp_path: Path
) -> None:
    world = World(tmp_path, database)
    session = await world.session(await world.add())
    for name in (session.guid, "0" * 32):
        (tmp_path / "sessions" / name / "home").mkdir(parents=True)
    async with world:
        assert [path.name for path in (tmp_path / "sessions").iterdir()] == [session.guid]


async def test_deleting_a_version_ends_its_sessions_and_removes_their_files(world: World) -> None:
    version, other = await world.add(), await world.add("other")
    gone, kept = await world.session(version), await world.session(other)
    for session, of in ((gone, version), (kept, other)):
        await world.ask(session, of)
    await world.manager.delete_of_version(version.key)
    assert {path.name for path in (world.directory / "sessions").iterdir()} == {kept.guid}
    assert await world.stored_session(version.agent, gone.id) is None
    assert await world.stored_session(other.agent, kept.id) == await world.stored_session(other.agent, kept.id)
    assert (world.manager.has_live_sessions(version.key), world.manager.has_live_sessions(other.key)) == (False, True)
    assert await world.sandboxes() == 1


async def test_a_log_is_followed_until_the_sandbox_ends(world: World) -> None:
    async def talk(peer: Peer, head: Request) -> None:
        talking[0].print("stdout", await peer.body(head) + b"\n")
        await peer.send(answer())

    async def run(process: FakeProcess) -> int:
        talking.append(process)
        return await program(talk)(process)

    talking: list[FakeProcess] = []
    world.programs["talker"] = run
    version = await world.add(image="talker")
    session = await world.session(version)
    await world.ask(session, version, b"before")
    following = world.manager.follow_log(session)
    first = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    await world.ask(session, version, b"now")
    assert json.loads(await first)["message"] == "now"
    await world.manager.stop_session(session)
    assert [json.loads(entry)["message"] async for entry in following] == ["The sandbox was stopped."]


async def test_a_session_without_a_sandbox_has_nothing_to_follow(world: World) -> None:
    session = await world.session(await world.add())
    assert [entry async for entry in world.manager.follow_log(session)] == []
