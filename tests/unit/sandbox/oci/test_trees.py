"""Removing what a sandbox left, however it is built."""

from __future__ import annotations

import os
from pathlib import Path

from cupola.sandbox.oci.trees import remove_tree

DEEP = 1200
"""Directories inside one another: more than a path can name, than Python recurses, than a process may have files open."""


def dig(top: Path, depth: int) -> None:
    """Directories inside one another, each with a file."""
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        os.mkdir("inner", dir_fd=descriptor)
        inner = os.open("inner", os.O_RDONLY | os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    dig(top, DEEP)
    remove_tree(top)
    assert list(tmp_path.iterdir()) == []


def test_many_kinds_of_entries_are_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for name in ("a/b/c", "a/d", "e", "inner"):
        (top / name).mkdir(parents=True)
    (top / "a" / "file").write_text("x")
    (top / "e" / "-rf").write_text("x")
    (top / "e" / os.fsdecode(b"\xff\n")).write_text("x")
    os.mkfifo(top / "pipe")
    (top / "a" / "b").chmod(0)
    remove_tree(top)
    assert list(tmp_path.iterdir()) == []


def test_links_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "a" / "link").symlink_to(outside)
    (top / "link").symlink_to(outside, target_is_directory=True)
    os.link(outside / "kept", top / "a" / "hard")
    remove_tree(top)
    assert (outside / "kept").read_text() == "x"
    assert not top.exists()
