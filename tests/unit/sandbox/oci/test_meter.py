"""Measuring what sandboxes keep on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from cupola.sandbox.oci import meter
from tests.unit.sandbox.oci.test_trees import dig

MIB = 1024 * 1024
PLENTY = (1 << 40, 1 << 40)


def measure(*directories: Path, most: tuple[int, int] = PLENTY, processes: tuple[int, ...] = ()) -> tuple[int, int]:
    return meter.measure([*map(str, directories)], [*processes], meter.Count(*most))


def test_what_is_on_the_disk_counts_and_not_what_a_file_claims_to_have(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "full").write_bytes(b"x" * MIB)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    size, inodes = measure(tmp_path)
    assert MIB <= size < 2 * MIB
    assert inodes == 4


def test_several_directories_count_together_and_a_missing_one_is_empty(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x")
    assert measure(tmp_path / "a", tmp_path / "b", tmp_path / "missing")[1] == 4


def test_a_file_with_several_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * MIB)
    for number in range(10):
        os.link(tmp_path / "one", tmp_path / f"name-{number}")
    size, inodes = measure(tmp_path)
    assert size < 2 * MIB
    assert inodes == 2


def test_links_are_not_followed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (tmp_path / "large").write_bytes(b"x" * MIB)
    (top / "file").symlink_to(tmp_path / "large")
    (top / "directory").symlink_to("/usr")
    size, inodes = measure(top)
    assert size < MIB
    assert inodes == 3


def test_counting_ends_at_a_limit(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).write_bytes(b"x" * 10_000)
    assert measure(tmp_path, most=(100_000, 1000))[0] > 100_000
    assert measure(tmp_path, most=(MIB * 10, 50))[1] == 51


def test_a_tree_that_is_too_deep_counts_as_too_large(tmp_path: Path) -> None:
    dig(tmp_path, meter.DEEPEST + 10)
    assert measure(tmp_path, most=(MIB * 1000, 5000))[1] == 5001


def test_a_removed_file_counts_while_a_process_has_it_open(tmp_path: Path) -> None:
    with (tmp_path / "hidden").open("wb", buffering=0) as file:
        file.write(b"x" * MIB)
        (tmp_path / "hidden").unlink()
        assert measure(tmp_path)[0] < MIB
        assert measure(tmp_path, processes=(os.getpid(), os.getpid(), 1 << 30))[0] >= MIB
        assert measure(tmp_path, processes=(os.getpid(), os.getpid()))[0] < 2 * MIB


def test_as_a_program_it_answers_for_each_sandbox(tmp_path: Path) -> None:
    asked = [{"directories": [str(tmp_path)], "processes": []}, {"directories": [], "processes": []}]
    command = [sys.executable, "-I", "-S", meter.__file__, "1000000", "1000"]
    answer = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    assert [inodes for _, inodes in json.loads(answer.stdout)] == [1, 0]
