"""Versions of agents."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cupola.cli.client import connect


def show(
    agent: str,
    version: str,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
    data: Path | None = None,
) -> None:
    """Show a version: its definition, status, and how each step of its provisioning went.

    Parameters
    ----------
    agent
        Name of the agent.
    version
        Number of the version.
    as_json
        Print JSON for programs.
    data
        Folder of the server to ask.
    """
    with connect(data) as client:
        found = client.get(f"/agents/{agent}/versions/{version}")
        events = client.get(f"/agents/{agent}/versions/{version}/events")["data"]
    if as_json:
        json.dump({**found, "events": events}, sys.stdout, indent=2)
        print()
        return
    definition = found["definition"]
    protocols = ", ".join(f"{entry['protocol']} {entry['version']}" for entry in definition["protocol_versions"])
    print(f"Version    {found['id']}")
    print(f"Status     {found['status']}")
    print(f"Image      {definition['image']}")
    print(f"Digest     {found['image_digest'] or '(not resolved)'}")
    print(f"Protocols  {protocols}")
    print(f"Size       {definition['cpu']} cores, {definition['memory']}")
    print(f"Created    {datetime.fromtimestamp(found['created_at']).astimezone():%Y-%m-%d %H:%M:%S %z}")
    print("\nEvents")
    for event in events:
        print(_line(event))


def _line(event: dict[str, Any]) -> str:
    at = datetime.fromtimestamp(event["at_ms"] / 1000).astimezone()
    took = "" if event["duration_ms"] is None else f"{event['duration_ms']:.0f} ms"
    return f"  {at:%H:%M:%S}.{event['at_ms'] % 1000:03d}  {took:>9}  {event['step']:<10} {printable(event['message'])}"


def printable(text: str) -> str:
    """Text of an agent's making without the characters by which it could steer a terminal."""
    return "".join(character if character.isprintable() or character in "\n\t" else "�" for character in text)
