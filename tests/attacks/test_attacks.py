"""Every attempt to break out of a sandbox with all its walls fails."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from tests.attacks.arena import Arena
from tests.attacks.attempts.files import LAYER_CHANGES
from tests.attacks.attempts.registry import Wall
from tests.attacks.attempts.run import ATTEMPTS

HOST_WALLS = {Wall.HOST_PATHS, Wall.OTHER_SESSIONS, Wall.PID, Wall.IPC, Wall.UTS, Wall.CGROUP, Wall.NETWORK}
INSIDE = sorted(name for name, attempt in ATTEMPTS.items() if Wall.LAYERS not in attempt.walls)


@pytest.fixture(scope="module", params=["crun", "runc"])
def runtime(request: pytest.FixtureRequest) -> str:
    program: str = request.param
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    return program


@pytest.fixture(scope="module")
def verdicts(arena: Arena, runtime: str) -> dict[str, str]:
    return asyncio.run(arena.run(INSIDE, runtime=runtime))


@pytest.mark.parametrize("name", INSIDE)
def test_it_is_refused(verdicts: dict[str, str], name: str) -> None:
    verdict = verdicts[name]
    if verdict.startswith("impossible"):
        pytest.skip(verdict)
    assert verdict.startswith("refused: "), ATTEMPTS[name].tries


def test_no_change_of_the_layers_is_seen_outside(arena: Arena, runtime: str) -> None:
    before = {name: arena.layer_file(name) for name in LAYER_CHANGES}
    asyncio.run(arena.run([f"layer_{name}" for name in LAYER_CHANGES], runtime=runtime))
    assert {name: arena.layer_file(name) for name in LAYER_CHANGES} == before


async def test_runsc_keeps_the_host_out_of_reach(arena: Arena) -> None:
    """Its kernel is its own, so attempts at that kernel show nothing of the host."""
    if shutil.which("runsc") is None:
        pytest.skip("runsc is not installed")
    names = [name for name, attempt in ATTEMPTS.items() if attempt.walls & HOST_WALLS]
    verdicts = await arena.run(names, runtime="runsc")
    assert [name for name in names if verdicts[name] == "succeeded" or verdicts[name].startswith("broken")] == []
    before = {name: arena.layer_file(name) for name in LAYER_CHANGES}
    await arena.run([f"layer_{name}" for name in LAYER_CHANGES], runtime="runsc")
    assert {name: arena.layer_file(name) for name in LAYER_CHANGES} == before
