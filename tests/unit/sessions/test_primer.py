from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cupola.domain.session import Session
from cupola.sandbox.base import SandboxError
from cupola.sandbox.fake import FakeDriver, FakeProcess
from cupola.sessions import primer as primer_module
from cupola.sessions.launcher import StartFailed
from cupola.sessions.primer import HELD_OUTPUT, HeldOutput, PrimedSandbox
from cupola.sessions.priming.client import PrimingFailed
from cupola.sessions.priming.entry_point import NotPrimable
from cupola.sessions.priming.plan import Plan
from cupola.storage import agents
from cupola.storage.database import Database
from tests.unit.sessions.primed_world import PYTHON, PrimedWorld, Sink, primed_world
from tests.unit.sessions.world import World, silent

NOTHING_AHEAD = Plan((), {}, ("FOUNDRY_AGENT_SESSION_ID", "FOUNDRY_AGENT_SESSION_GUID"))
READS_SESSION = "import os\nSEEN = os.environ['FOUNDRY_AGENT_SESSION_ID']"


async def prime(agent: PrimedWorld, plan: Plan = NOTHING_AHEAD) -> PrimedSandbox:
    place = await agent.world.launcher.admission.take(agent.version.definition.memory_bytes, "test")
    return await agent.world.primer.prime(agent.version, agent.image, plan, place)


# What is printed before the session is known


def test_what_is_printed_ahead_comes_first_in_the_log_of_the_session() -> None:
    held, sink = HeldOutput(), Sink()
    held.output("stdout", b"one\n")
    held.output("stderr", b"two\n")
    assert held.tail() == ("one", "two")
    assert sink.told == []
    held.pass_on(sink)
    held.output("stdout", b"three\n")
    assert sink.told == [("stdout", "one"), ("stderr", "two"), ("stdout", "three")]
    assert held.tail() == ("one", "two", "three")


def test_only_the_last_of_what_is_printed_ahead_is_held() -> None:
    held, sink = HeldOutput(), Sink()
    for number in range(100):
        held.output("stdout", f"{number:1023}\n".encode())
    held.pass_on(sink)
    assert len(sink.told) == HELD_OUTPUT // 1024
    assert sink.told[-1][1].strip() == "99"


# Learning


async def test_a_plan_is_learnt_and_kept(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path) as agent:
        plan = await agent.learn()
        assert plan is not None
        assert {"http.server", "json", "helper"} <= {name for name, _ in plan.modules}
        (line,) = agent.events
        assert line.startswith(f"An interpreter imports {len(plan.modules)} modules ahead, {len(plan.skipped)} not; ")
        await agent.nothing_left()


async def test_a_version_that_does_not_ask_for_it_has_no_plan(world: World, tmp_path: Path) -> None:
    other = await world.add("other")
    await world.database.write(lambda connection: agents.set_priming_plan(connection, other.key, b"{}"))
    assert await world.primer.plan(other) is None


async def test_a_driver_that_cannot_attach_starts_cold(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path) as agent:
        world.driver.can_attach = False
        assert await agent.learn() is None
        assert agent.events == [
            "Sessions of this version start cold: the sandboxes of this server cannot be given to a session after their start."
        ]


async def test_an_entry_point_that_is_not_python_starts_cold(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path, command=("sh", "-c", "python3 main.py")) as agent:
        assert await agent.learn() is None
        (line,) = agent.events
        assert line.startswith("Sessions of this version start cold: The entry point runs sh, which is not Python.")
        await agent.nothing_left()


async def test_a_module_that_reads_the_session_is_not_imported_ahead(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path, {"helper.py": READS_SESSION}) as agent:
        plan = await agent.learn()
        assert plan is not None
        assert plan.skipped["helper"] == "It uses the variable FOUNDRY_AGENT_SESSION_ID"
        running = await world.primer.hand_over(await prime(agent, plan), agent.first, Sink())
        assert (await agent.ask(running))["imported"] == "first"
        await world.launcher.stop(running, 0)


async def test_a_module_that_fails_ahead_is_left_to_the_program(world: World, tmp_path: Path) -> None:
    second_time_fails = (
        "import os\nSEEN = os.path.exists('first')\nopen('second' if SEEN else 'first', 'w').close()\n"
        "if SEEN and not os.path.exists('third'):\n  open('third', 'w').close()\n  raise OSError"
    )
    async with primed_world(world, tmp_path, {"helper.py": second_time_fails}) as agent:
        plan = await agent.learn()
        assert plan is not None
        assert plan.skipped["helper"] == "it could not be imported ahead when it was tried"
        assert "json" in {name for name, _ in plan.modules}
        await agent.nothing_left()


async def test_a_trial_that_fails_is_told(world: World, tmp_path: Path) -> None:
    only_cold = "if b'-c' in open('/proc/self/cmdline', 'rb').read().split(b'\\0'): raise SystemExit(3)\n"
    async with primed_world(world, tmp_path) as agent:
        main = (agent.application / "main.py").read_text()
        # The recorded start has the command line of a waiting interpreter as well.
        marked = main.replace(
            "server =", f"import os\nif os.path.exists('again'):\n  {only_cold}open('again', 'w')\nserver ="
        )
        (agent.application / "main.py").write_text(marked)
        assert await agent.learn() is None
        assert agent.events == [
            "Sessions of this version start cold, as the trial failed: The container exited with code 3 before it was ready."
        ]
        await agent.nothing_left()


async def test_a_trial_in_which_nothing_ahead_could_be_used_is_no_success(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path) as agent:

        async def attach(name: str, home: Path, files: Path) -> None:
            (agent.application / "new.py").write_text("")
            await FakeDriver.attach(world.driver, name, home, files)  # type: ignore[arg-type]

        world.driver.attach = attach  # type: ignore[method-assign]
        assert await agent.learn() is None
        (line,) = agent.events
        assert "start cold: what was imported ahead could not be used. " in line
        assert line.endswith("/app has changed since modules were looked for there.")
        await agent.nothing_left()


# Priming and handing over


async def test_sessions_find_their_own_in_primed_sandboxes(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path, {"helper.py": "SEEN = 'x'\nprint('while importing')"}) as agent:
        plan = await agent.learn()
        assert plan is not None
        waiting = [await prime(agent, plan) for _ in range(2)]
        sink = Sink()
        first = await world.primer.hand_over(waiting[0], agent.first, sink)
        second = await world.primer.hand_over(waiting[1], agent.second, Sink())
        answers = [await agent.ask(running) for running in (first, second)]
        assert [(answer["id"], answer["guid"]) for answer in answers] == [
            ("first", "first-guid"), ("second", "second-guid"),
        ]  # fmt: skip
        assert answers[0]["random"] != answers[1]["random"]
        assert (answers[0]["argv"], answers[0]["main"]) == (["main.py"], "__main__")
        assert sink.told == [("stdout", "while importing")]
        assert (first.kind, [step for step, _ in first.steps]) == ("primed", ["hand over", "readiness"])
        assert (agent.first.directory / "home").is_dir()
        for running in (first, second):
            await world.launcher.stop(running, 0)
        await agent.nothing_left()


async def test_an_interpreter_that_cannot_use_its_imports_starts_cold_and_says_so(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path, {"helper.py": READS_SESSION}) as agent:
        plan = await agent.learn()
        assert plan is not None
        primed = await prime(agent, plan)
        (agent.application / "random.py").write_text("def random(): return 4")
        sink = Sink()
        running = await world.primer.hand_over(primed, agent.first, sink)
        assert running.kind == "cold"
        reason = f"{agent.application} has changed since modules were looked for there."
        assert ("status", f"What was imported ahead could not be used, so it starts cold. {reason}") in sink.told
        answer = await agent.ask(running)
        assert (answer["id"], answer["imported"], answer["random"]) == ("first", "first", 4)
        await world.launcher.stop(running, 0)
        await agent.nothing_left()


async def test_a_discarded_interpreter_is_gone(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path) as agent:
        await world.primer.discard(await prime(agent))
        await agent.nothing_left()


# What goes wrong


async def ends(process: FakeProcess) -> int:
    return 1


def sends(data: bytes) -> Callable[[FakeProcess], Awaitable[int]]:
    async def run(process: FakeProcess) -> int:
        assert process.standard_input is not None
        await asyncio.get_running_loop().sock_sendall(process.standard_input, data)
        return await silent(process)

    return run


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (ends, "the interpreter ended before it was ready|could not be told what to do"),
        (sends(b"\xff\xff\xff\xff"), "a message of 4294967295 bytes"),
        (sends(b"\0\0\0\2{}"), "something that is not a message"),
        (sends(b'\0\0\0\x1f{"type":"running","cold":null}  '), "something that was not asked for"),
        (silent, "its imports took longer than 0.2 s"),
    ],
)
async def test_a_sandbox_that_does_not_prime_is_removed(
    program: Callable[[FakeProcess], Awaitable[int]], reason: str, world: World, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(primer_module, "PRIME_DEADLINE", 0.2)
    async with primed_world(world, tmp_path) as agent:
        world.programs[PYTHON] = program
        with pytest.raises(PrimingFailed, match=reason):
            await prime(agent)
        await agent.nothing_left()


async def test_an_image_that_is_not_python_any_more_keeps_no_place(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path, command=("sh",)) as agent:
        with pytest.raises(NotPrimable):
            await prime(agent)
        await agent.nothing_left()


async def test_priming_that_is_cancelled_leaves_nothing(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path) as agent:
        world.programs[PYTHON] = silent
        priming = asyncio.ensure_future(prime(agent))
        await world.until(lambda: bool(world.driver._sandboxes))  # type: ignore[attr-defined]
        priming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await priming
        await agent.nothing_left()


async def test_learning_that_is_cancelled_leaves_nothing(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path) as agent:
        world.programs[PYTHON] = silent
        learning = asyncio.ensure_future(agent.learn())
        await world.until(lambda: bool(world.driver._sandboxes))  # type: ignore[attr-defined]
        learning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await learning
        await agent.nothing_left()


async def test_a_sandbox_that_ended_before_its_session_came_is_removed(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path) as agent:
        primed = await prime(agent)
        await world.driver.stop(primed.agent.sandbox.name, 0)
        with pytest.raises(PrimingFailed, match="could not be put into the sandbox: the sandbox has ended"):
            await world.primer.hand_over(primed, agent.first, Sink())
        await agent.nothing_left()


async def test_an_interpreter_that_does_not_begin_is_given_up(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with primed_world(world, tmp_path) as agent:
        primed = await prime(agent)

        async def never(name: str, home: Path, files: Path) -> None:
            await asyncio.get_running_loop().create_future()

        monkeypatch.setattr(primer_module, "RUN_DEADLINE", 0.01)
        world.driver.attach = never  # type: ignore[method-assign]
        with pytest.raises(PrimingFailed, match="the interpreter did not begin within"):
            await world.primer.hand_over(primed, agent.first, Sink())
        await agent.nothing_left()


async def test_a_hand_over_that_is_cancelled_leaves_nothing(world: World, tmp_path: Path) -> None:
    waits = "import time, sys\nsys.stdin.read()\nprint('begun', flush=True)\ntime.sleep(60)"
    async with primed_world(world, tmp_path, {"main.py": waits}) as agent:
        primed, sink = await prime(agent), Sink()
        handing = asyncio.ensure_future(world.primer.hand_over(primed, agent.first, sink))
        await world.until(lambda: ("stdout", "begun") in sink.told)
        assert world.launcher.starting == 1
        handing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handing
        assert world.launcher.starting == 0
        await agent.nothing_left()


async def test_an_agent_that_ends_after_the_hand_over_has_failed(world: World, tmp_path: Path) -> None:
    async with primed_world(world, tmp_path, {"main.py": "print('sorry')\nraise SystemExit(4)"}) as agent:
        primed = await prime(agent)
        with pytest.raises(StartFailed, match="exited with code 4") as caught:
            await world.primer.hand_over(primed, agent.first, Sink())
        assert caught.value.tail == ("sorry",)
        await agent.nothing_left()


async def test_a_session_whose_hand_over_fails_starts_cold_and_is_told(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, pool_size=1) as world, primed_world(world, tmp_path) as agent:
        assert await agent.learn() is not None
        world.pool.expect(agent.version)
        await world.until(lambda: world.pool.counts() == (1, 1))

        async def attach(name: str, home: Path, files: Path) -> None:
            raise SandboxError("no")

        world.driver.attach = attach  # type: ignore[method-assign]
        session = await world.session(agent.version)
        async with world.manager.running(session, agent.version) as use:
            assert use.tier == "cold"
            assert (await agent.ask(use.agent))["guid"] == session.guid
        log = console(world, session)
        assert "It could not be used, so the sandbox starts cold: the session's directories could not be put" in log
        assert "Starting the sandbox on version 1." in log


async def test_sessions_get_primed_sandboxes_from_the_pool(tmp_path: Path, database: Database) -> None:
    async with World(tmp_path, database, pool_size=1) as world, primed_world(world, tmp_path) as agent:
        assert await agent.learn() is not None
        world.pool.expect(agent.version)
        await world.until(lambda: world.pool.counts() == (1, 1))
        session = await world.session(agent.version)
        async with world.manager.running(session, agent.version) as use:
            assert use.tier == "primed"
            assert (await agent.ask(use.agent))["id"] == session.id
        assert "The session gets an interpreter that was made ready for version 1." in console(world, session)


def console(world: World, session: Session) -> str:
    return (world.manager.log_directory(session) / "console.jsonl").read_text()
