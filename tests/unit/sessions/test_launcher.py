from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from cupola.domain.version import Version
from cupola.images.model import Image
from cupola.sandbox.base import SandboxSpec
from cupola.sandbox.fake import FakeProcess
from cupola.sessions.admission import Admission, Limits
from cupola.sessions.launcher import Launcher, RunningAgent, SandboxSession, StartFailed
from cupola.storage.database import Database
from cupola.telemetry.output import OutputTail
from tests.unit.sessions.world import OutOfMemoryDriver, World, exits, program


async def launch(world: World, version: Version, directory: Path, image: Image | None = None) -> RunningAgent:
    stored = image or await world.images.load(version.digest or "")
    assert stored is not None
    place = await world.launcher.admission.take(version.definition.memory_bytes, "test")
    session = SandboxSession("session-1", "guid", directory)
    return await world.launcher.launch(version, stored, session, OutputTail(), place)


async def failure(world: World, version: Version, directory: Path, image: Image | None = None) -> StartFailed:
    with pytest.raises(StartFailed) as caught:
        await launch(world, version, directory, image)
    assert await world.sandboxes() == 0
    assert world.launcher.admission.count == 0
    return caught.value


async def test_a_sandbox_gets_what_the_definition_and_the_image_say(world: World, tmp_path: Path) -> None:
    specs: list[SandboxSpec] = []

    async def note(process: FakeProcess) -> int:
        specs.append(process.spec)
        return await program()(process)

    world.programs["note"] = note
    version = await world.add(image="note", cpu="0.5", memory="1Gi", environment_variables={"A": "b"})
    agent = await launch(world, version, tmp_path / "durable")
    (spec,) = specs
    assert (spec.cpu, spec.memory, spec.port) == (0.5, 1024**3, 8088)
    assert (spec.arguments, spec.working_directory, spec.user) == (("note",), "/app", "agent")
    assert (spec.home, spec.files) == (tmp_path / "durable/home", tmp_path / "durable/files")
    assert {("A", "b"), ("FROM_IMAGE", "image"), ("FOUNDRY_AGENT_SESSION_ID", "session-1")} < set(spec.environment)
    assert [step for step, _ in agent.steps] == ["start", "readiness"]
    await world.launcher.stop(agent)
    assert await world.sandboxes() == 0


async def test_a_container_that_ends_leaves_its_last_lines_and_nothing_else(world: World, tmp_path: Path) -> None:
    world.programs["broken"] = exits(3, b"first\n", b"no end")
    error = await failure(world, await world.add(image="broken"), tmp_path)
    assert error.message == "The container exited with code 3 before it was ready."
    assert error.tail == ("first", "no end")
    assert error.describe() == f"{error.message} Its last output:\nfirst\nno end"


async def test_only_the_last_lines_are_told() -> None:
    error = StartFailed("It failed.", tuple(str(number) for number in range(20)))
    assert error.describe(2) == "It failed. Its last output:\n18\n19"
    assert StartFailed("It failed.", ()).describe() == "It failed. The container printed nothing."


async def test_an_entry_point_that_is_not_there_is_told(world: World, tmp_path: Path) -> None:
    error = await failure(world, await world.add(image="unknown"), tmp_path)
    assert error.message == "The sandbox could not be started: the entry point cannot be executed: unknown."


async def test_an_image_with_nothing_to_run_is_told(world: World, tmp_path: Path) -> None:
    version = await world.add()
    image = await world.images.load(version.digest or "")
    assert image is not None
    empty = replace(image, config=replace(image.config, entrypoint=()))
    error = await failure(world, version, tmp_path, empty)
    assert "neither ENTRYPOINT nor CMD" in error.message


async def test_a_sandbox_that_never_becomes_ready_is_removed(world: World, tmp_path: Path) -> None:
    world.launcher = Launcher(world.driver, replace(world.installation, startup_timeout=0.05), Admission(Limits()))
    error = await failure(world, await world.add(image="silent"), tmp_path)
    assert "The container was not ready after 0.05 s: nothing listens on any port." in error.message
    assert error.tail == ("I do nothing.",)


async def test_a_launch_that_is_cancelled_removes_its_sandbox(world: World, tmp_path: Path) -> None:
    version = await world.add(image="silent")
    launching = asyncio.ensure_future(launch(world, version, tmp_path))
    async with asyncio.timeout(20):
        while await world.sandboxes() == 0:
            await asyncio.sleep(0.001)
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert await world.sandboxes() == 0


async def test_the_memory_limit_is_named_when_it_was_too_small(database: Database, tmp_path: Path) -> None:
    async with World(tmp_path, database, OutOfMemoryDriver()) as world:
        error = await failure(world, await world.add(memory="512Mi"), tmp_path)
    assert error.out_of_memory
    assert error.message == (
        "The container was killed because it used more memory than its limit before it was ready. "
        "The limit of the definition is memory: 512Mi; give it more."
    )


async def test_a_stop_that_is_cancelled_removes_the_sandbox_and_frees_its_place(world: World, tmp_path: Path) -> None:
    asked, may_end = asyncio.Event(), asyncio.Event()

    async def polite(process: FakeProcess) -> int:
        process.handles_sigterm = True
        serving = asyncio.ensure_future(program()(process))
        await process.terminate.wait()
        asked.set()
        await may_end.wait()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return 0

    world.programs["polite"] = polite
    agent = await launch(world, await world.add(image="polite"), tmp_path)
    stopping = asyncio.ensure_future(world.launcher.stop(agent, 20))
    await asked.wait()
    stopping.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert await world.sandboxes() == 0
    assert world.launcher.admission.count == 0
