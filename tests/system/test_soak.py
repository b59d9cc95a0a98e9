"""Short forms of the soaks, `make soak-crash` and `make soak-rest`, without their limits for memory and times."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.soak import crash, rest

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the oci driver needs root")


@needs_root
def test_kills_at_random_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    summary = crash.soak(tmp_path, 12, seed)
    assert summary.kills.total() == 12
    assert summary.counts.files > 0
    assert summary.checks == 1


@needs_root
def test_sandboxes_rest_and_wake_again_and_again(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    summary = rest.soak(tmp_path, 90, seed)
    assert summary.tiers["frozen"] > 0
    assert summary.tiers["cold"] + summary.tiers["primed"] > len(rest.SESSION_COUNTS)
