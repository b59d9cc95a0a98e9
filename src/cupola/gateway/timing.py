"""Where the time of a request went: the `Server-Timing` header of its answer, and the histograms."""

from __future__ import annotations

import time

from cupola.sandbox.http import Response
from cupola.sessions.live import Use
from cupola.telemetry import metrics


class Timing:
    """The phases of one request, in seconds, as far as it has come.

    `resolve`: until the session is known, the request's body included. `queue`: waiting for a place on the server. `start` or
    `wake`: until the sandbox runs. `connect`: until there is a connection to the agent. `agent`: until the head of its answer.
    The tier is how the request found the sandbox: running, frozen, started or primed ahead, or cold.
    """

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self.tier = ""
        self.phases: list[tuple[str, float]] = []

    def resolved(self) -> None:
        """The session is known."""
        self.phases.append(("resolve", time.perf_counter() - self._mark))

    def has(self, use: Use) -> None:
        """The sandbox runs."""
        self.tier = use.tier
        if use.waited:
            queued = min(use.agent.queued, use.waited) if use.tier != "frozen" else 0.0
            self.phases.append(("queue", queued))
            self.phases.append(("wake" if use.tier == "frozen" else "start", use.waited - queued))

    def answered(self, response: Response) -> None:
        """The agent has begun to answer."""
        self.phases.append(("connect", response.connected))
        self.phases.append(("agent", response.answered))
        for phase, seconds in self.phases:
            metrics.INVOKE_SECONDS.labels(self.tier, phase).observe(seconds)

    def __str__(self) -> str:
        entries = [f'tier;desc="{self.tier}"'] if self.tier else []
        return ", ".join([*entries, *(f"{phase};dur={1000 * seconds:.2f}" for phase, seconds in self.phases)])
