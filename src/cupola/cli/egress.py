"""What sandboxes may reach outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from cupola.cli.client import connect

PATH = "/egress"


def show(
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    data: Path | None = None,
) -> None:
    """Show the egress policy: what sandboxes may reach outside.

    Parameters
    ----------
    as_json
        Print JSON for programs.
    data
        Folder of the server to ask.
    """
    with connect(data) as client:
        policy = client.get(PATH)
    if as_json:
        json.dump(policy, sys.stdout, indent=2)
        print()
    else:
        _print(policy)


def replace(
    mode: Literal["open", "allow-list", "none"],
    /,
    *names: str,
    private_range: Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)] = (),
    data: Path | None = None,
) -> None:
    """Replace the egress policy, the whole of it.

    Sessions that have a sandbox keep the policy it was started with until it is stopped.

    Parameters
    ----------
    mode
        Everything public, the names of a list, or nothing.
    names
        Of an allow-list: names such as api.example.com, *.example.com (below it) or api.example.com:443 (that port alone).
    private_range
        Private network that can be reached as well, such as 10.20.0.0/16; can be given more than once.
    data
        Folder of the server to ask.
    """
    policy = {"mode": mode, "names": names, "private_ranges": private_range}
    with connect(data) as client:
        _print(client.put(PATH, policy))


def _print(policy: dict[str, Any]) -> None:
    rows = (("Mode", [policy["mode"]]), ("Names", policy["names"]), ("Private ranges", policy["private_ranges"]))
    for label, values in rows:
        for number, value in enumerate(values):
            print(f"{'' if number else label:<16}{value}")
