"""What servers that died left behind is removed by the next start of any server."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

from cupola.sandbox.oci.driver import LOCK_NAME, STATE, sweep_dead_installations

WAIT = "import signal; signal.pause()"


def test_a_runtime_that_a_dead_server_left_in_the_middle_of_work_is_ended(tmp_path: Path) -> None:
    run = tmp_path / f"unit-{os.getpid()}"
    run.mkdir()
    (run / LOCK_NAME).touch()
    with subprocess.Popen([sys.executable, "-c", WAIT, "--root", str(run / STATE)]) as runtime:
        try:
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
