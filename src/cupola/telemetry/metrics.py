"""The metrics of this server, in the text format of Prometheus. Names follow its conventions: base units, `_total`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE

REGISTRY = CollectorRegistry()

_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

INVOKE_SECONDS = Histogram(
    "cupola_invoke_phase_seconds",
    "Time that a request to an agent spent in a phase, by how it found the sandbox.",
    ("tier", "phase"),
    registry=REGISTRY,
    buckets=_BUCKETS,
)
SANDBOXES = Gauge("cupola_sandboxes", "Sandboxes by status, and those made ahead.", ("status",), registry=REGISTRY)
WAITING = Gauge("cupola_sandbox_queue", "Requests that wait for a place for their sandbox.", registry=REGISTRY)

__all__ = ["CONTENT_TYPE", "INVOKE_SECONDS", "REGISTRY", "SANDBOXES", "WAITING", "exposition"]


def exposition() -> bytes:
    """All metrics as text."""
    return generate_latest(REGISTRY)
