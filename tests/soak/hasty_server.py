"""A server by whose clock sandboxes are idle SPEED times as long, so that the shortest idle timeout takes a second."""

from __future__ import annotations

import time

from cupola.app import run
from cupola.settings import load

SPEED = 120

if __name__ == "__main__":
    run(load()[0], lambda _: None, uptime=lambda: SPEED * time.monotonic())
