"""Does a sandbox that runs wild slow its neighbours? A quiet agent is asked alone, and beside each kind of bomb.

Every request goes through the gateway to a running session. Each bomb is an agent in a session of its own and has the same
limits as the quiet one. They take turns in several rounds, so that what else the machine does falls on all of them; before
each bomb there is a while of quiet, and all of those together are the reference.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._harness import Goal, Row, options, report  # noqa: E402
from scripts.build_sample import build  # noqa: E402
from tests.system.platform import Platform  # noqa: E402

BOMBS = ("processor", "forks", "memory", "disk", "inodes", "log", "empty lines", "sockets")
PROTOCOLS = [{"protocol": "invocations", "version": "2.0.0"}]
PAUSE = 0.005
"""Seconds between two requests of the quiet agent."""
RAMP = 0.5
"""Seconds a bomb gets before the measurement begins."""
CALM = 0.5
"""Seconds by which a bomb outlasts the measurement, and half of the pause until the next begins."""
DEADLINE = 60.0
FACTOR = 2.0


class Asking:
    """A client with one connection of its own."""

    def __init__(self, platform: Platform) -> None:
        with platform.http() as client:
            self._headers = {"content-type": "application/json", "authorization": client.headers["authorization"]}
            self._connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=DEADLINE)

    def invoke(self, agent: str, body: dict[str, object], session: str | None = None) -> tuple[float, str]:
        """Milliseconds until the answer was there, and the session it came from."""
        path = f"/api/projects/default/agents/{agent}/endpoint/protocols/invocations"
        if session is not None:
            path += f"?agent_session_id={session}"
        began = time.perf_counter()
        self._connection.request("POST", path, json.dumps(body).encode(), self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        took = 1000 * (time.perf_counter() - began)
        if answer.status != 200:
            raise RuntimeError(content.decode())
        return took, answer.headers.get("x-agent-session-id") or ""


class Quiet:
    """The neighbour, and what it measured."""

    def __init__(self, platform: Platform) -> None:
        self._asking = Asking(platform)
        _, self._session = self._asking.invoke("quiet", {})
        self.times: dict[str, list[float]] = {}

    def measure(self, beside: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.times.setdefault(beside, []).append(self._asking.invoke("quiet", {}, self._session)[0])
            time.sleep(PAUSE)


def main() -> None:
    chosen = options(__doc__ or "")
    if os.geteuid() != 0:
        sys.exit("neighbours: sandboxes need root")
    rounds, seconds = (2, 1.0) if chosen.quick else (5, 3.0)
    with tempfile.TemporaryDirectory(prefix="cupola-bench-") as name:
        folder = Path(name)
        build(ROOT / "benchmarks" / "bomb", folder / "bomb", "1")
        platform = Platform(folder / "data").start()
        # The client stands for one on another machine: what it waits for a processor itself is not to be measured.
        os.setpriority(os.PRIO_PROCESS, 0, -15)
        try:
            for agent in ("quiet", "bomb"):
                version = platform.deploy(agent, f"oci:{folder / 'bomb'}:1", memory="1Gi", protocol_versions=PROTOCOLS)
                if version["status"] != "active":
                    raise RuntimeError(f"the deployment failed: {version['error']}")
            quiet = Quiet(platform)
            quiet.measure("warming up", 1)
            for bomb in BOMBS * rounds:
                quiet.measure("alone", seconds / 2)
                Asking(platform).invoke("bomb", {"bomb": bomb, "seconds": RAMP + seconds + CALM})
                time.sleep(RAMP)
                quiet.measure(bomb, seconds)
                time.sleep(2 * CALM)
        finally:
            platform.stop()
    rows = [Row.of(beside, times) for beside, times in quiet.times.items() if beside != "warming up"]
    alone = rows[0]
    goals = [
        Goal(f"beside the bomb of {row.name} p99 is at most {FACTOR:g} times that alone", row.p99 <= FACTOR * alone.p99)
        for row in rows[1:]
    ]
    report("A quiet agent's answer, beside", rows, "alone", goals, chosen)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
