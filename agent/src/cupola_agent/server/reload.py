"""The local loop: runs a command again whenever a Python file below the working directory changes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MARK = "CUPOLA_AGENT_RELOADED"
"""Set for the command, which then serves instead of supervising."""
_PAUSE_SECONDS = 0.5
_STOP_SECONDS = 40.0
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", "venv"})


def supervise(command: Sequence[str]) -> int:
    """Until SIGINT or SIGTERM. A command that ended by itself, as on a syntax error, waits for the next change."""
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    seen = snapshot(Path())
    process = _start(command)
    reported = False
    while not stopping:
        time.sleep(_PAUSE_SECONDS)
        now = snapshot(Path())
        changed = sorted(name for name in now.keys() | seen.keys() if now.get(name) != seen.get(name))
        if changed:
            seen, reported = now, False
            _say(f"{changed[0]} changed, starting again")
            _stop(process)
            process = _start(command)
        elif process.poll() is not None and not reported:
            reported = True
            _say(f"the agent ended with {process.returncode}; waiting for a change")
    _stop(process)
    return 0


def snapshot(folder: Path) -> dict[str, int]:
    """The time of the last change, in nanoseconds, of every Python file below a folder."""
    found: dict[str, int] = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED and not name.startswith(".")]
        for name in files:
            if name.endswith(".py"):
                path = Path(parent, name)
                try:
                    found[str(path)] = path.stat().st_mtime_ns
                except FileNotFoundError:
                    continue  # it has gone since it was listed
    return found


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    # A process group of its own: Ctrl-C reaches the supervisor only, which then ends it once.
    return subprocess.Popen(command, env={**os.environ, MARK: "1"}, process_group=0)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _say(text: str) -> None:
    print(f"cupola-agent: {text}", file=sys.stderr, flush=True)  # noqa: T201
