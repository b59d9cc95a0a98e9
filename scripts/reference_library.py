"""An environment with the reference protocol library, for what compares ours with it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).with_suffix(".lock")
CACHE = Path(__file__).parents[1] / ".cache" / "reference"


def reference_python() -> Path:
    """The interpreter of an environment with the reference library, exactly as the lock file has it.

    Raises subprocess.CalledProcessError when a package cannot be installed.
    """
    environment = CACHE / hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:16]
    if not (environment / "complete").exists():
        uv = Path(sys.executable).parent / "uv"
        python = environment / "bin" / "python"
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, environment], check=True)
        subprocess.run([uv, "pip", "sync", "-q", "--python", python, "--require-hashes", LOCK], check=True)
        (environment / "complete").touch()
    return environment / "bin" / "python"
