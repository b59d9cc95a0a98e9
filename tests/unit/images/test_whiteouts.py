"""What a layer removes, seen through a real overlay mount."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cupola.images.model import Image
from cupola.sandbox.oci import linux
from tests.unit.images.samples import Entry, directory, entry, tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="unpacking needs root")

PullLayers = Callable[..., Awaitable[Image]]

LOWER = tar(entry("gone"), entry("kept"), entry("dir/old"))


def merged(image: Image, tmp_path: Path) -> set[str]:
    """The names of all files in the stacked layers."""
    target = tmp_path / "merged"
    target.mkdir()
    empty = tmp_path / "empty"  # overlayfs wants at least two
    empty.mkdir()
    lower = ":".join(str(layer) for layer in (*reversed(image.layers), empty))
    linux.mount("overlay", str(target), "overlay", 0, f"lowerdir={lower}")
    try:
        return {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    finally:
        linux.unmount(str(target))


@pytest.mark.parametrize(
    ("upper", "expected"),
    [
        ([entry(".wh.gone")], {"kept", "dir/old"}),
        ([entry("dir/.wh.old")], {"gone", "kept"}),
        ([entry(".wh.dir"), entry(".wh.never-there")], {"gone", "kept"}),
        ([directory("dir"), entry("dir/.wh..wh..opq"), entry("dir/new")], {"gone", "kept", "dir/new"}),
        ([entry("dir/new"), entry("dir/.wh..wh..opq")], {"gone", "kept", "dir/new"}),
        ([entry(".wh.dir"), directory("dir"), entry("dir/new")], {"gone", "kept", "dir/new"}),
        ([entry(".wh.dir"), entry("dir/new")], {"gone", "kept", "dir/new"}),
        ([directory("dir"), entry("dir/new"), entry(".wh.dir")], {"gone", "kept", "dir/new"}),
        ([entry(".wh.dir"), entry("dir")], {"gone", "kept", "dir"}),
        ([entry("dir"), entry(".wh.dir")], {"gone", "kept", "dir"}),
        ([entry(".wh..wh..opq"), entry("only")], {"only"}),
        ([entry(".wh..wh.plnk/1.2"), entry(".wh..wh.aufs")], {"gone", "kept", "dir/old"}),
    ],
    ids=str,
)
async def test_whiteouts(tmp_path: Path, pull_layers: PullLayers, upper: list[Entry], expected: set[str]) -> None:
    assert merged(await pull_layers(LOWER, tar(*upper)), tmp_path) == expected


async def test_a_layer_that_occurs_twice_can_be_mounted(tmp_path: Path, pull_layers: PullLayers) -> None:
    image = await pull_layers(LOWER, tar(entry(".wh.kept")), LOWER)
    assert len(image.layers) == 2
    assert merged(image, tmp_path) == {"gone", "kept", "dir/old"}
