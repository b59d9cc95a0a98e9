"""Runs the black-box suite against the reference library: what fails there must be what we say is wrong with it.

    python -m agent.tests.blackbox.reference [PYTEST OPTIONS]

`reference_differences.toml` names the cases that fail, each under the reason why that is a defect of the reference. A
case that fails and is not named, or that is named and passes, ends the run with a status other than 0; so does a name
that no case has.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from scripts.reference_library import reference_python

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
DIFFERENCES = FOLDER / "reference_differences.toml"


@dataclass(frozen=True)
class Difference:
    """A defect of the reference and the cases that show it. A `*` in a case stands for any text."""

    reason: str
    section: str
    cases: tuple[re.Pattern[str], ...]

    def covers(self, case: str) -> bool:
        return any(pattern.fullmatch(case) for pattern in self.cases)

    def idle(self, failed: Collection[str]) -> list[str]:
        """The patterns that no failed case has."""
        return [pattern.pattern for pattern in self.cases if not any(map(pattern.fullmatch, failed))]


def read_differences(text: str) -> list[Difference]:
    return [
        Difference(
            entry["reason"],
            entry["section"],
            tuple(re.compile(re.escape(case).replace(r"\*", ".*"), re.DOTALL) for case in entry["cases"]),
        )
        for entry in tomllib.loads(text)["difference"]
    ]


@dataclass
class Recorder:
    """What came of each case: a plugin of pytest."""

    outcomes: dict[str, bool] = field(default_factory=dict)
    """Whether a case passed, by file name and test."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = report.nodeid.removeprefix(f"{FOLDER.relative_to(ROOT)}/")
        if report.skipped:
            self.outcomes.pop(case, None)
            return
        self.outcomes[case] = self.outcomes.get(case, True) and report.passed


def main(options: list[str]) -> int:
    os.environ["CUPOLA_BLACKBOX_REFERENCE"] = str(reference_python())
    recorder = Recorder()
    pytest.main(["-q", "--tb=no", "-r", "s", "--no-summary", str(FOLDER), *options], plugins=[recorder])
    failed = {case for case, passed in recorder.outcomes.items() if not passed}
    differences = read_differences(DIFFERENCES.read_text())
    unnamed = sorted(case for case in failed if not any(difference.covers(case) for difference in differences))
    passing = sorted(
        case for case in recorder.outcomes.keys() - failed if any(difference.covers(case) for difference in differences)
    )
    print(f"\n{len(recorder.outcomes)} cases, of which the reference fails {len(failed)}:")
    for difference in differences:
        count = sum(difference.covers(case) for case in failed)
        print(f"  {count:4}  {difference.reason} (contract {difference.section})")
    for case in unnamed:
        print(f"fails and is not named: {case}")
    for case in passing:
        print(f"is named and passes: {case}")
    # Of a part of the suite nothing can be said about the cases that were left out.
    idle = [] if options else [pattern for difference in differences for pattern in difference.idle(failed)]
    for pattern in idle:
        print(f"names no case: {pattern}")
    return 1 if unnamed or passing or idle or not recorder.outcomes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
