from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from cupola.domain.version import Version, VersionEvent, VersionStatus
from cupola.sandbox.fake import FakeProcess
from cupola.storage import agents
from cupola.storage.database import Database
from tests.unit.sessions.world import OutOfMemoryDriver, World, digest_of, exits, program

CREATING, ACTIVE, FAILED, DELETING = VersionStatus


async def events(world: World, version: Version) -> tuple[VersionEvent, ...]:
    return await world.database.read(lambda connection: agents.list_events(connection, version.key))


async def settled(world: World, version: Version) -> Version:
    """The version once nobody works on it any more."""
    await world.until(lambda: version.key not in world.provisioner._tasks)
    return await world.version(version)


async def finished(world: World, version: Version) -> Version:
    """The version once it is no longer being created."""
    async with asyncio.timeout(20):
        while (found := await world.version(version)).status is CREATING:
            await asyncio.sleep(0.001)
    return found


async def provisioned(world: World, **fields: object) -> Version:
    version = await world.add(status=CREATING, **fields)  # type: ignore[arg-type]
    world.provisioner.submit(version)
    return await settled(world, version)


async def test_a_version_becomes_active_step_by_step(world: World) -> None:
    version = await provisioned(world)
    assert (version.status, version.digest, version.error_code) == (ACTIVE, digest_of("serve"), None)
    found = await events(world, version)
    assert [event.step for event in found] == [
        "resolve",
        "pull",
        "unpack",
        "image",
        "start",
        "readiness",
        "active",
    ]
    assert not any(event.failed for event in found)
    assert {event.step for event in found if event.duration is not None} == {"resolve", "image", "start", "readiness"}
    assert {event.at for event in found} == {int(1000 * world.now)}
    assert found[0].message == f"registry.example.com/serve:1 is {digest_of('serve')}"
    assert found[3].message == "The image is here: 1.5 MB in 0 layers."
    assert found[-1].message == "Version echo:1 is ready to serve requests."


async def test_a_trial_leaves_no_sandbox_and_no_files(world: World) -> None:
    await provisioned(world)
    assert await world.sandboxes() == 0
    assert list((world.directory / "trials").iterdir()) == []
    assert list(world.directory.glob("sessions/*")) == []


async def test_a_trial_that_is_cut_off_when_it_is_ready_leaves_no_sandbox(world: World) -> None:
    gate = threading.Event()
    blocking: list[asyncio.Task[bool]] = []

    async def serve_while_nothing_can_be_written(process: FakeProcess) -> int:
        blocking.append(asyncio.ensure_future(world.database.write(lambda _: gate.wait())))
        return await program()(process)

    world.programs["serve"] = serve_while_nothing_can_be_written
    version = await world.add(status=CREATING)
    world.provisioner.submit(version)
    await world.until(lambda: bool(blocking) and not world.launcher.starting)
    try:
        await world.provisioner.cancel(version.key)
        assert await world.sandboxes() == 0
    finally:
        gate.set()
    await asyncio.gather(*blocking)


async def test_an_image_that_does_not_exist_fails_the_version_with_its_code(world: World) -> None:
    world.images.missing.add("serve")
    version = await provisioned(world)
    assert (version.status, version.error_code) == (FAILED, "InvalidContainerImage")
    assert version.error_message == "There is no image registry.example.com/serve:1."
    (event,) = await events(world, version)
    assert (event.step, event.failed) == ("failed", True)
    assert event.message == "InvalidContainerImage: There is no image registry.example.com/serve:1."


async def test_a_container_that_ends_fails_the_version_with_its_last_lines(world: World) -> None:
    world.programs["broken"] = exits(3, b"no database\n", b"giving up")
    version = await provisioned(world, image="broken")
    assert (version.status, version.error_code) == (FAILED, "ContainerNotReady")
    assert version.error_message == (
        "The container exited with code 3 before it was ready. Its last output:\nno database\ngiving up"
    )
    found = await events(world, version)
    assert [(event.step, event.failed) for event in found[-3:]] == [
        ("output", False),
        ("output", False),
        ("failed", True),
    ]
    assert [event.message for event in found[-3:-1]] == ["no database", "giving up"]
    assert list((world.directory / "trials").iterdir()) == []


async def test_too_little_memory_has_a_code_of_its_own(database: Database, tmp_path: Path) -> None:
    async with World(tmp_path, database, OutOfMemoryDriver()) as world:
        version = await provisioned(world, memory="512Mi")
    assert (version.status, version.error_code) == (FAILED, "OutOfMemory")
    assert "memory: 512Mi; give it more" in (version.error_message or "")


async def test_a_failure_that_nobody_foresaw_is_told_by_its_reference_only(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    (world.directory / "trials").rmdir()
    (world.directory / "trials").write_text("in the way")
    version = await provisioned(world)
    assert (version.status, version.error_code) == (FAILED, "ProvisioningError")
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage().rpartition(" ")[2] in (version.error_message or "")


async def test_a_version_is_not_worked_on_twice_at_once(world: World) -> None:
    starts = 0

    async def run(process: FakeProcess) -> int:
        nonlocal starts
        starts += 1
        return await program()(process)

    world.programs["counted"] = run
    version = await world.add(image="counted", status=CREATING)
    for _ in range(3):
        world.provisioner.submit(version)
    assert (await settled(world, version)).status is ACTIVE
    assert starts == 1


@pytest.mark.parametrize("status", [ACTIVE, FAILED, DELETING])
async def test_a_version_that_is_no_longer_being_created_keeps_its_status(world: World, status: VersionStatus) -> None:
    version = await world.add(status=status)
    world.provisioner.submit(version)
    assert (await settled(world, version)).status is status
    # What came too late harms nobody: the provisioner goes on.
    assert (await provisioned(world, name="next")).status is ACTIVE


async def test_a_version_that_was_deleted_meanwhile_is_let_go(world: World) -> None:
    go = asyncio.Event()
    started = asyncio.Event()

    async def run(process: FakeProcess) -> int:
        started.set()
        await go.wait()
        return await program()(process)

    world.programs["slow"] = run
    version = await world.add(image="slow", status=CREATING)
    world.provisioner.submit(version)
    await started.wait()
    await world.database.write(lambda connection: agents.delete_version(connection, version.key))
    go.set()
    await world.until(lambda: version.key not in world.provisioner._tasks)
    assert (await provisioned(world, name="next")).status is ACTIVE


async def test_cancelling_ends_all_work_on_a_version(world: World) -> None:
    version = await world.add(image="silent", status=CREATING)
    world.provisioner.submit(version)
    async with asyncio.timeout(20):
        while await world.sandboxes() == 0:
            await asyncio.sleep(0.001)
    await world.provisioner.cancel(version.key)
    assert await world.sandboxes() == 0
    assert list((world.directory / "trials").iterdir()) == []
    assert (await world.version(version)).status is CREATING
    await world.provisioner.cancel(version.key)
    await world.provisioner.cancel(999)


async def test_no_more_versions_than_allowed_are_worked_on_at_once(world: World) -> None:
    running, most = 0, 0
    go = asyncio.Event()

    async def run(process: FakeProcess) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await go.wait()
            return await program()(process)
        finally:
            running -= 1

    world.programs["slow"] = run
    versions = [await world.add(f"agent{number}", image="slow", status=CREATING) for number in range(5)]
    for version in versions:
        world.provisioner.submit(version)
    await world.until(lambda: running == 2)
    go.set()
    assert [(await settled(world, version)).status for version in versions] == [ACTIVE] * 5
    assert most == 2


async def test_a_version_that_was_left_is_provisioned_again_at_the_next_start(
    database: Database, tmp_path: Path
) -> None:
    async with World(tmp_path, database) as first:
        version = await first.add(image="silent", status=CREATING)
        first.provisioner.submit(version)
        async with asyncio.timeout(20):
            while await first.sandboxes() == 0:
                await asyncio.sleep(0.001)
    assert await first.sandboxes() == 0
    assert (await first.version(version)).status is CREATING
    (tmp_path / "trials" / "left").mkdir()
    second = World(tmp_path, database)
    second.programs["silent"] = program()
    async with second:
        found = await finished(second, version)
        await settled(second, version)
        assert found.status is ACTIVE
        assert found.digest == digest_of("silent")
        assert list((tmp_path / "trials").iterdir()) == []


async def test_a_version_keeps_the_digest_that_was_found_first(database: Database, tmp_path: Path) -> None:
    world = World(tmp_path, database)
    version = await world.add(status=CREATING)
    pinned = world.images.store("serve")
    await database.write(lambda connection: agents.set_digest(connection, version.key, pinned))
    world.images.salt = "moved"
    async with world:
        assert (await finished(world, version)).digest == pinned
