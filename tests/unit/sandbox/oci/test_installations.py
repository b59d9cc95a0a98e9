"""What servers that died left behind is removed by the next start of any server."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cupola.sandbox.oci.cgroup import find_hierarchies
from cupola.sandbox.oci.installations import LOCK_NAME, STATE, sweep_dead_installations
from cupola.settings import Settings

WAIT = "import signal; signal.pause()"


def test_what_hides_control_groups_has_room_for_all_sandboxes() -> None:
    # The process that runs the tests has hidden them as a server does.
    hidden = find_hierarchies().hidden
    if hidden is None:
        pytest.skip("no control groups have to be hidden here, or not as this user")
    assert os.statvfs(hidden).f_bfree >= 4 * Settings().max_sandboxes


def test_a_runtime_that_a_dead_server_left_in_the_middle_of_work_is_ended(tmp_path: Path) -> None:
    run = tmp_path / f"unit-{os.getpid()}"
    run.mkdir()
    (run / LOCK_NAME).touch()
    with subprocess.Popen([sys.executable, "-c", WAIT, "--root", str(run / STATE)]) as runtime:
        try:
            # The kernel shows the arguments a moment after the program was started.
            while not Path(f"/proc/{runtime.pid}/cmdline").read_bytes():
                time.sleep(0.001)
            sweep_dead_installations(tmp_path)
            assert runtime.wait(10) == -signal.SIGKILL
        finally:
            runtime.kill()
    assert not run.exists()


def test_what_belongs_to_a_server_that_lives_is_left_alone(tmp_path: Path) -> None:
    run = tmp_path / f"unit-{os.getpid()}"
    run.mkdir()
    with (run / LOCK_NAME).open("a") as lock, subprocess.Popen(
        [sys.executable, "-c", WAIT, "--root", str(run / STATE)]
    ) as runtime:  # fmt: skip
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep_dead_installations(tmp_path)
        assert runtime.poll() is None
        runtime.kill()
    assert run.exists()
