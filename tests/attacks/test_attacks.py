"""Every attempt to break out of a sandbox with all its walls fails."""

from __future__ import annotations

import asyncio

import pytest

from tests.attacks.arena import Arena
from tests.attacks.attempts import run
from tests.attacks.attempts.files import LAYER_CHANGES
from tests.attacks.attempts.registry import ATTEMPTS, Wall

assert run

INSIDE = sorted(name for name, attempt in ATTEMPTS.items() if Wall.LAYERS not in attempt.walls)


@pytest.fixture(scope="module")
def verdicts(arena: Arena) -> dict[str, str]:
    return asyncio.run(arena.run(INSIDE))


@pytest.mark.parametrize("name", INSIDE)
def test_it_is_refused(verdicts: dict[str, str], name: str) -> None:
    verdict = verdicts[name]
    if verdict.startswith("impossible"):
        pytest.skip(verdict)
    assert verdict.startswith("refused: "), ATTEMPTS[name].tries


def test_no_change_of_the_layers_is_seen_outside(arena: Arena) -> None:
    before = {name: arena.layer_file(name) for name in LAYER_CHANGES}
    asyncio.run(arena.run(f"layer_{name}" for name in LAYER_CHANGES))
    assert {name: arena.layer_file(name) for name in LAYER_CHANGES} == before
