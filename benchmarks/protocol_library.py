"""The protocol library under load, beside the reference library and an app on uvicorn alone, in one run.

* ours: cupola-agent with its defaults.
* reference: azure-ai-agentserver-responses with its defaults.
* lean: the same without telemetry and access log, with warnings only and responses in memory.
* bare: an app on uvicorn (uvloop, httptools) that parses the request, answers with an object as large and stores nothing.

All run the same handler (protocol_agents/work.py), keep their state on a tmpfs and take turns in each round, so that
whatever else the machine does falls on all alike; the figures are medians over the rounds. "/CPU s" is for each second
of processor time that all threads of the server used, which other work on the machine disturbs less. Streams are stored
ones of 1,000 text deltas; the delay of a lone event is from the handler's yield after a wait until the client has read
it. Every answer is checked. The generator runs in the benchmark's own process; its ceiling is what it measures with a
server that answers with the request's own bytes.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._harness import Goal, conclude, options  # noqa: E402
from benchmarks._load import answers, delays, streams  # noqa: E402
from benchmarks._servers import Server, served  # noqa: E402
from scripts.reference_library import reference_python  # noqa: E402

AGENTS = "benchmarks.protocol_agents"
CONNECTIONS = (1, 16, 64)
STREAMS = (1, 32)
DELTAS = 1000
GENERATOR = "generator"
KINDS = ("ours", "reference", "lean", "bare")


@dataclass(frozen=True)
class Effort:
    """How often and how long, in seconds, each thing is measured."""

    rounds: int
    starts: int
    seconds: float
    lone_events: int


QUICK = Effort(rounds=5, starts=4, seconds=0.15, lone_events=10)
FULL = Effort(rounds=15, starts=11, seconds=0.35, lone_events=30)


@dataclass
class Figures:
    """What was measured, in order of the first measurement, by row and kind of server."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    complete_streams: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, row: str, kind: str, value: float) -> None:
        self.samples[row][kind].append(value)

    def median(self, row: str, kind: str) -> float:
        return statistics.median(self.samples[row][kind])

    def ratio(self, row: str, to: str) -> float:
        return self.median(row, "ours") / self.median(row, to)


def commands() -> Mapping[str, list[str]]:
    reference = [str(reference_python()), "-m", f"{AGENTS}.reference"]
    return {
        "ours": [sys.executable, "-m", "cupola_agent", "run", "--host", "127.0.0.1", f"{AGENTS}.ours:agent"],
        "reference": reference,
        "lean": [*reference, "lean"],
        "bare": [sys.executable, "-m", f"{AGENTS}.bare"],
    }


def requests_row(connections: int, *, store: bool, per: str = "s") -> str:
    return f"requests/{per}, {'stored' if store else 'store=false'}, {connections}"


def events_row(at_once: int, per: str = "s") -> str:
    return f"stream events/{per}, {at_once}"


READY, READY_PROCESSOR = "ready after, ms", "processor time until ready, ms"
READY_MEMORY, LOADED_MEMORY = "memory when ready, MB", "memory after the load, MB"
EVENT_SIZE, DELAY = "bytes per event", "delay of a lone event, ms"


def measure_starts(figures: Figures, effort: Effort, folder: Path) -> None:
    """Start each kind in turn. The first round fills the page cache and compiles, and does not count."""
    for number in range(effort.starts + 1):
        for kind, command in commands().items():
            with served(kind, command, folder / kind) as server:
                if number > 0:
                    figures.add(READY, kind, 1000 * server.ready_after)
                    figures.add(READY_PROCESSOR, kind, 1000 * server.cpu_seconds())
                    figures.add(READY_MEMORY, kind, server.megabytes())


def measure_requests(figures: Figures, effort: Effort, servers: Mapping[str, Server]) -> None:
    for store in (True, False):
        for connections in CONNECTIONS:
            for kind, server in servers.items():
                if store and kind in ("bare", GENERATOR):
                    continue
                with server.blamed(), processor_time(server) as used:
                    load = answers(server.port, connections, effort.seconds, store=store)
                figures.add(requests_row(connections, store=store), kind, load.count / load.seconds)
                figures.add(requests_row(connections, store=store, per="CPU s"), kind, load.count / used[0])


def measure_streams(figures: Figures, effort: Effort, servers: Mapping[str, Server]) -> None:
    for at_once in STREAMS:
        for kind in KINDS:
            server = servers[kind]
            with server.blamed(), processor_time(server) as used:
                streamed = streams(server.port, at_once, DELTAS, effort.seconds)
            figures.add(events_row(at_once), kind, streamed.events / streamed.seconds)
            figures.add(events_row(at_once, "CPU s"), kind, streamed.events / used[0])
            figures.add(EVENT_SIZE, kind, streamed.size / streamed.events)
            figures.complete_streams[kind] += streamed.streams


def measure_delays(figures: Figures, effort: Effort, servers: Mapping[str, Server]) -> None:
    for kind in KINDS:
        with servers[kind].blamed():
            for delay in delays(servers[kind].port, effort.lone_events):
                figures.add(DELAY, kind, 1000 * delay)


@contextmanager
def processor_time(server: Server) -> Iterator[list[float]]:
    """Gives a list that holds, at the end, the seconds of processor time which the server used meanwhile."""
    used: list[float] = []
    before = server.cpu_seconds()
    yield used
    used.append(server.cpu_seconds() - before)


def measure(effort: Effort, folder: Path) -> Figures:
    figures = Figures()
    measure_starts(figures, effort, folder)
    with ExitStack() as running:
        servers = {kind: running.enter_context(served(kind, cmd, folder / kind)) for kind, cmd in commands().items()}
        trivial = [sys.executable, "-m", f"{AGENTS}.trivial"]
        servers[GENERATOR] = running.enter_context(served(GENERATOR, trivial, folder / GENERATOR))
        for _ in range(effort.rounds):
            measure_requests(figures, effort, servers)
            measure_streams(figures, effort, servers)
            measure_delays(figures, effort, servers)
        for kind in KINDS:
            figures.add(LOADED_MEMORY, kind, servers[kind].megabytes())
    return figures


def find_goals(figures: Figures) -> list[Goal]:
    def at_least(factor: float, row: str, to: str) -> Goal:
        name = {"reference": "the reference's", "lean": "the lean reference's", "bare": "bare uvicorn's"}[to]
        wanted = f"{factor:.0%} of" if factor < 1 else f"{factor:g} times"
        ratio = figures.ratio(row, to)
        return Goal(f"at least {wanted} {name} {row} ({ratio:.2f})", ratio >= factor)

    ready, memory = figures.median(READY, "ours"), figures.median(READY_MEMORY, "ours")
    later = figures.median(DELAY, "ours") - figures.median(DELAY, "bare")
    found = [
        Goal(f"ready at most 250 ms after exec ({ready:.0f})", ready <= 250),
        Goal(f"at most 35 MB when ready ({memory:.1f})", memory <= 35),
        *(at_least(5, requests_row(connections, store=True), "reference") for connections in (1, 16)),
        *(at_least(3, requests_row(connections, store=False), "lean") for connections in CONNECTIONS),
        *(at_least(0.5, requests_row(connections, store=False), "bare") for connections in CONNECTIONS),
    ]
    for factor in (4, 10):
        found += [at_least(factor, events_row(at_once), "reference") for at_once in STREAMS]
    found.append(Goal(f"a lone event at most 1 ms later than from bare uvicorn ({later:+.2f} ms)", later <= 1))
    return found


def print_figures(figures: Figures) -> None:
    others = KINDS[1:]
    print(f"\n{'':32}", *(f"{kind:>10}" for kind in KINDS), *(f"{'ours/' + kind:>15}" for kind in others))
    for row, by_kind in figures.samples.items():
        medians = [
            f"{figures.median(row, kind):>10,.{digits(row)}f}" if kind in by_kind else " " * 10 for kind in KINDS
        ]
        ratios = [f"{figures.ratio(row, kind):>15.2f}" if kind in by_kind else " " * 15 for kind in others]
        print(f"{row:32}", *medians, *ratios)
    complete = (f"{figures.complete_streams[kind]:>10}" for kind in KINDS)
    print(f"{'complete streams, of all':32}", *complete)
    print("\nThe load generator alone:")
    for connections in CONNECTIONS:
        row = requests_row(connections, store=False)
        ceiling, fastest = figures.median(row, GENERATOR), max(figures.median(row, kind) for kind in KINDS)
        print(f"  {ceiling:,.0f} requests/s, {connections}: {ceiling / fastest:.1f} times the fastest server")
    print()


def digits(row: str) -> int:
    return 2 if row == DELAY else 0 if "/" in row else 1


def main() -> None:
    chosen = options(__doc__ or "")
    title = "The protocol library beside the reference library"
    with tempfile.TemporaryDirectory(prefix="cupola-bench-", dir="/dev/shm") as name:
        figures = measure(QUICK if chosen.quick else FULL, Path(name))
    print_figures(figures)
    rows = [
        {"name": row, **{kind: statistics.median(values) for kind, values in by_kind.items()}}
        for row, by_kind in figures.samples.items()
    ]
    conclude(title, rows, find_goals(figures), chosen)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
