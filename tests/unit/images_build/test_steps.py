"""The steps that builders are made of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cupola.images.steps import BuildError, once, run


def test_a_command_gets_input_and_environment_and_gives_its_output(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['GREETING'], sys.stdin.read(), os.getcwd())"
    output = run([sys.executable, "-c", code], folder=tmp_path, environment={"GREETING": "hi"}, content=b"you")
    assert output.decode().split() == ["hi", "you", str(tmp_path)]


def test_a_failed_command_shows_itself_and_its_last_lines() -> None:
    code = "import sys; [print('line', n, file=sys.stderr) for n in range(100)]; sys.exit(3)"
    with pytest.raises(BuildError) as caught:
        run([sys.executable, "-c", code])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"exit status 3: {sys.executable} -c ")
    assert lines[1:] == [f"line {n}" for n in range(80, 100)]


def test_a_command_that_does_not_exist() -> None:
    with pytest.raises(BuildError, match="no-such-command cannot be started"):
        run(["no-such-command"])


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "done").write_text("once")

    target = tmp_path / "some" / "folder.1"
    assert once(target, make) == target

    def never(folder: Path) -> None:
        raise AssertionError(folder)

    assert (once(target, never) / "done").read_text() == "once"


def test_a_folder_whose_making_failed_is_made_again_from_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise BuildError("broken")

    with pytest.raises(BuildError, match="broken"):
        once(tmp_path / "folder", fail)
    assert not (tmp_path / "folder").exists()
    once(tmp_path / "folder", lambda folder: (folder / "whole").touch())
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["whole"]
