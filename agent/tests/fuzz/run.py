"""Sends generated requests to an agent: `python -m agent.tests.fuzz.run [--requests N] [--seed S]`.

Nine of ten are well-formed HTTP made from the OpenAPI document, the others are malformed. Ends with status 1 at the
first request that gets a 5xx that is not the handler's, no answer, or that leaves the agent unwell; the same seed makes
the same requests.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from agent.tests.blackbox.process import running
from agent.tests.fuzz import malformed, traffic
from agent.tests.fuzz.target import Broken, Target

ECHO = "agent.tests.fuzz.echo"
_ROUNDS = 20


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    # Told to stop, it takes its agent with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as home, running(Path(home), {}, ECHO) as agent:
        target = Target(agent)
        try:
            return fuzz(target, options.requests, options.seed)
        except Broken as broken:
            print(f"FAILED with --seed {options.seed}: {broken}")
            return 1
        finally:
            target.close()


def fuzz(target: Target, requests: int, seed: int) -> int:
    """The requests in rounds; how the agent is in between and at the end is printed."""
    choose = random.Random(seed)  # noqa: S311
    traffic.run(target, 500, seed)
    target.close()
    descriptors, memory, started = target.descriptors(), target.memory(), time.monotonic()
    counts: dict[int, int] = {}
    raw = 0
    number = 0
    while sum(counts.values()) + raw < requests:
        number += 1
        for status, count in traffic.run(target, requests * 9 // 10 // _ROUNDS, seed + number).items():
            counts[status] = counts.get(status, 0) + count
        for _ in range(requests // 10 // _ROUNDS):
            target.send_raw(malformed.mutated(choose))
            raw += 1
        grown = (target.memory() - memory) / 2**20
        print(
            f"{sum(counts.values()) + raw:6} requests, {time.monotonic() - started:4.0f} s, {grown:+.0f} MiB",
            flush=True,
        )
    target.check_unharmed(descriptors, memory)
    print(f"{sum(counts.values())} answered: {dict(sorted(counts.items()))}; {raw} malformed; the agent is well")
    return 0


if __name__ == "__main__":
    sys.exit(main())
