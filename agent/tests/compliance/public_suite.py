"""Runs the public Open Responses suite against the sample agent (contract section 8).

    OPENRESPONSES_DIR=path/to/checkout python -m agent.tests.compliance.public_suite

The checkout is not touched: its `bin` and `src` are copied to a folder of ours, with the few packages they need from npm.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from agent.tests.blackbox.process import ROOT, running
from agent.tests.compliance.conftest import SAMPLE

PACKAGES = ("zod@3.25.76", "tsx@4", "bun@1")
_BUN = {"x86_64": "bun-linux-x64", "aarch64": "bun-linux-aarch64"}


def prepared(checkout: Path) -> Path:
    """A copy of the suite that runs. Raises subprocess.CalledProcessError when npm cannot install what it needs."""
    name = hashlib.sha256(f"{checkout}{PACKAGES}".encode()).hexdigest()[:16]
    folder = ROOT / ".cache" / "openresponses" / name
    for part in ("bin", "src"):
        shutil.copytree(checkout / part, folder / part, dirs_exist_ok=True)
    if not (folder / "complete").exists():
        # Without one npm installs into the nearest folder above that has it.
        (folder / "package.json").write_text('{"private": true}')
        npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *PACKAGES]
        subprocess.run(npm, cwd=folder, check=True)
        (folder / "complete").touch()
    return folder


def main() -> int:
    checkout = Path(os.environ["OPENRESPONSES_DIR"]).resolve()
    folder = prepared(checkout)
    bun = folder / "node_modules" / "@oven" / _BUN[platform.machine()] / "bin" / "bun"
    with tempfile.TemporaryDirectory() as home, running(Path(home), {}, SAMPLE) as sample:
        command = [str(bun), "run", "bin/compliance-test.ts", "--base-url", f"http://127.0.0.1:{sample.port}"]
        done = subprocess.run([*command, "--api-key", "any", *sys.argv[1:]], cwd=folder, check=False, timeout=300)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
