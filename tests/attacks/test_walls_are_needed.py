"""The attempts are real: each succeeds once the walls that are said to refuse it are gone, and fails while one of them stands.

So a wall that is lost, or an attempt that could not succeed anywhere, is found here. What succeeds does no harm: it reaches
canaries, asks for nonsense that the kernel judges only after it let the caller pass, or writes back what is there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attacks.arena import Arena
from tests.attacks.attempts import run
from tests.attacks.attempts.files import LAYER_CHANGES
from tests.attacks.attempts.registry import ATTEMPTS, Wall

assert run

Verdicts = Callable[[frozenset[Wall]], dict[str, str]]
NEED_OF_THE_HOST = {"raise_open_files": 24, "survive_lack_of_memory": 24}
"""Attempts that succeed only where the tests themselves have a capability: CAP_SYS_RESOURCE."""
DEFENCE_IN_DEPTH = [
    (name, wall) for name, one in sorted(ATTEMPTS.items()) if len(one.walls) > 1 for wall in sorted(one.walls)
]


@pytest.fixture(scope="module")
def without(arena: Arena) -> Verdicts:
    """What became of attempts without some walls: those that need them gone, and those that one more wall refuses."""
    known: dict[frozenset[Wall], dict[str, str]] = {}

    def verdicts(walls: frozenset[Wall]) -> dict[str, str]:
        if walls not in known:
            names = [name for name, one in ATTEMPTS.items() if walls <= one.walls and len(one.walls - walls) <= 1]
            known[walls] = asyncio.run(arena.run(names, walls))
        return known[walls]

    return verdicts


@pytest.mark.parametrize("name", sorted(ATTEMPTS))
def test_it_succeeds_without_its_walls(without: Verdicts, arena: Arena, name: str) -> None:
    walls = ATTEMPTS[name].walls
    verdict = without(walls)[name]
    if verdict.startswith("impossible"):
        pytest.skip(verdict)
    if name in NEED_OF_THE_HOST and not _have(NEED_OF_THE_HOST[name]):
        pytest.skip("the tests do not have CAP_SYS_RESOURCE themselves")
    assert verdict == "succeeded", ATTEMPTS[name].tries


@pytest.mark.parametrize(("name", "wall"), DEFENCE_IN_DEPTH)
def test_each_of_its_walls_is_enough(without: Verdicts, name: str, wall: Wall) -> None:
    verdict = without(ATTEMPTS[name].walls - {wall})[name]
    if verdict.startswith("impossible"):
        pytest.skip(verdict)
    assert verdict.startswith("refused: "), f"although there is {wall}: {ATTEMPTS[name].tries}"


def test_layers_change_without_an_overlay(arena: Arena) -> None:
    arena.restore_layer()
    before = {name: arena.layer_file(name) for name in LAYER_CHANGES}
    asyncio.run(arena.run([f"layer_{name}" for name in LAYER_CHANGES], frozenset({Wall.LAYERS})))
    assert [name for name in LAYER_CHANGES if arena.layer_file(name) == before[name]] == []


def _have(capability: int) -> bool:
    status = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    effective = next(line for line in status if line.startswith("CapEff:")).split()[1]
    return bool(int(effective, 16) >> capability & 1)
