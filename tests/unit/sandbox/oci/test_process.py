"""The end of every child is seen, also of those that somebody else started for us."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cupola.sandbox.oci import linux, process

LEAVES_A_DEAD_CHILD = """
import os, sys
child = os.fork()
if child == 0:
    os._exit(7)
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
print(child, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def helper() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES_A_DEAD_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        yield started


async def test_the_end_of_one_that_becomes_our_child_only_later_is_seen(helper: subprocess.Popen[str]) -> None:
    linux.become_subreaper()
    assert helper.stdin is not None
    assert helper.stdout is not None
    ended = process.watch_exit(int(helper.stdout.readline()))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(ended), 0.05)
    helper.stdin.close()
    assert await asyncio.wait_for(ended, 20) == 7
