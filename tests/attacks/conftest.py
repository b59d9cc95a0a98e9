"""What attacks share: a place to make them in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cupola.images.debian import build_base
from tests.attacks.arena import Arena, canaries

CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Sandboxes, and a host with something to steal."""
    if os.geteuid() != 0:
        pytest.skip("the oci driver needs root")
    CACHE.mkdir(exist_ok=True)
    with canaries() as found:
        yield Arena(tmp_path_factory.mktemp("arena"), build_base(CACHE / "images"), found)
