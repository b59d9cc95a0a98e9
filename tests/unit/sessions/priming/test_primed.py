"""A primed interpreter does what a cold one does: every program here is run by both, and what they print is compared."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from cupola.sessions.priming.plan import make_plan
from tests.unit.sessions.priming.interpreters import (
    ENVIRONMENT,
    OTHERS,
    OURS,
    Result,
    entry_point,
    interpreter_of,
    record,
    run_cold,
    run_primed,
    version_of,
)
from tests.unit.sessions.priming.programs import ENDS, LOOKS, START, SUPPORT, WORKS, Case

LOOKS_EVERYWHERE = ("arguments", "package in a package", "module that its helper imports", "text")
ENDS_EVERYWHERE = (
    "an exception in functions", "a syntax error in an imported module", "a hook of the program", "a hook that fails",
    "the traceback kept",
)  # fmt: skip
WORKS_EVERYWHERE = ("source", "spawn")


async def _compare(case: Case, interpreter: str, directory: Path) -> Result:
    """Run a program cold, watched and primed; what they print must be the same."""
    for name, content in case.files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    environment = {**ENVIRONMENT, "SESSION": "ours", **case.environment, "LAST": "1"}
    entry = entry_point(interpreter, *case.command)
    cold, (watched, recording) = await asyncio.gather(
        run_cold(entry, environment, directory),
        record(entry, {**environment, "SESSION": "watched"}, directory),
    )
    assert watched.code == cold.code, watched.stderr
    plan = make_plan(recording)
    primed, report = await run_primed(entry, plan, environment, directory)
    assert report.skipped == {}
    assert primed.cold is None
    assert _lines(primed) == _lines(cold)
    return primed


def _lines(result: Result) -> list[str]:
    """Whatever a program has shown, without what differs from run to run."""
    text = re.sub(r"0x[0-9a-f]+|[0-9]{10,}|pid=\d+", "…", f"{result.stdout}\n{result.stderr}\n{result.code}")
    return text.splitlines()


async def _compare_looks(name: str, interpreter: str, directory: Path) -> None:
    result = await _compare(LOOKS[name], interpreter, directory)
    assert result.code == 0, result.stderr
    assert "session ours ours" in result.stdout


def _case(program: str) -> Case:
    first = program.startswith(("from __future__", "'''"))
    return Case({"main.py": program if first else START + program, **SUPPORT})


@pytest.mark.parametrize("name", LOOKS)
async def test_nothing_looks_different(name: str, tmp_path: Path) -> None:
    if version_of(OURS) < LOOKS[name].oldest:
        pytest.skip("this version of Python does not have it")
    await _compare_looks(name, OURS, tmp_path)


@pytest.mark.parametrize("name", ENDS)
async def test_it_ends_in_the_same_way(name: str, tmp_path: Path) -> None:
    await _compare(_case(ENDS[name]), OURS, tmp_path)


@pytest.mark.parametrize("name", WORKS)
async def test_it_works_in_the_same_way(name: str, tmp_path: Path) -> None:
    result = await _compare(_case(WORKS[name]), OURS, tmp_path)
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("version", OTHERS)
@pytest.mark.parametrize("name", LOOKS_EVERYWHERE)
async def test_nothing_looks_different_in_other_versions(name: str, version: str, tmp_path: Path) -> None:
    await _compare_looks(name, interpreter_of(version), tmp_path)


@pytest.mark.parametrize("version", OTHERS)
@pytest.mark.parametrize("name", [*ENDS_EVERYWHERE, *WORKS_EVERYWHERE])
async def test_other_versions_work_and_end_in_the_same_way(name: str, version: str, tmp_path: Path) -> None:
    await _compare(_case({**ENDS, **WORKS}[name]), interpreter_of(version), tmp_path)
