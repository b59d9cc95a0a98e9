"""What attacks share: a place to make them in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cupola.images.debian import build_base
from scripts.build_sample import build
from tests.attacks.arena import Arena, canaries
from tests.attacks.target import ALICE, BOB, Target
from tests.system.platform import Platform, traces

CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="session")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Sandboxes, and a host with something to steal."""
    if os.geteuid() != 0:
        pytest.skip("the oci driver needs root")
    CACHE.mkdir(exist_ok=True)
    with canaries() as found:
        yield Arena(tmp_path_factory.mktemp("arena"), build_base(CACHE / "images"), found)


@pytest.fixture(scope="package")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A platform that runs a hostile agent in sessions of two callers."""
    if os.geteuid() != 0:
        pytest.skip("the oci driver needs root")
    folder = tmp_path_factory.mktemp("target")
    build(Path(__file__).parent / "hostile_agent", folder / "image", "1")
    platform = Platform(folder / "data", {"CUPOLA_EGRESS": "none"}).start()
    try:
        version = platform.deploy(
            "hostile",
            f"oci:{folder / 'image'}:1",
            protocol_versions=[{"protocol": "invocations", "version": "2.0.0"}],
        )
        assert version["status"] == "active", version
        found = Target(platform)
        for session, token in ((ALICE, found.alice), (BOB, found.bob)):
            assert found.invoke(session, {}, token).status == 200
        yield found
    finally:
        platform.stop()
    assert traces(platform.data) == []
