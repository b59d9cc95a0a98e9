"""What every benchmark shares: arguments, statistics, the table with its reference, and the goals."""

from __future__ import annotations

import argparse
import json
import socket
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """`quick` asks for few repetitions; `json` is a file for the figures."""

    quick: bool
    json: Path | None


@dataclass(frozen=True)
class Row:
    """One thing measured, in milliseconds."""

    name: str
    count: int
    p50: float
    p95: float
    p99: float
    least: float

    @classmethod
    def of(cls, name: str, milliseconds: Sequence[float]) -> Row:
        ordered = sorted(milliseconds)
        p95, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.95, 0.99))
        return cls(name, len(ordered), statistics.median(ordered), p95, p99, ordered[0])


@dataclass(frozen=True)
class Goal:
    """A statement about the figures and whether they bear it out."""

    text: str
    met: bool


def options(description: str) -> Options:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parsed = parser.parse_args()
    return Options(parsed.quick, parsed.json)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def report(title: str, rows: Sequence[Row], reference: str, goals: Sequence[Goal], chosen: Options) -> None:
    """Print the table, each row beside the reference row, and the goals."""
    base = next(row for row in rows if row.name == reference)
    width = max(len(row.name) for row in rows)
    print(f"\n{title}\n")
    columns = "  ".join(f"{name + ' ms':>8}" for name in ("p50", "p95", "p99", "min"))
    print(f"{'':{width}}  {'n':>4}  {columns}  {'p50 / ' + reference:>20}  {'added ms':>9}")
    for row in rows:
        ratio, added = row.p50 / base.p50, row.p50 - base.p50
        print(
            f"{row.name:{width}}  {row.count:>4}  {row.p50:>8.1f}  {row.p95:>8.1f}  {row.p99:>8.1f}  {row.least:>8.1f}  "
            f"{ratio:>20.2f}  {added:>9.1f}"
        )
    print()
    conclude(title, [asdict(row) for row in rows], goals, chosen)


def conclude(title: str, rows: Sequence[Mapping[str, object]], goals: Sequence[Goal], chosen: Options) -> None:
    """Print the goals, and write the figures to the file that was asked for."""
    for goal in goals:
        print(f"{'met' if goal.met else 'NOT met':>7}  {goal.text}")
    if chosen.json is not None:
        figures = {"title": title, "rows": rows, "goals": [asdict(goal) for goal in goals]}
        chosen.json.write_text(json.dumps(figures, indent=2))
    print(f"goals met: {sum(goal.met for goal in goals)} of {len(goals)}")
