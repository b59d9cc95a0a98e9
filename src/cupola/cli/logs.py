"""Logs of the platform and of sessions."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cupola.cli.client import connect
from cupola.cli.versions import printable
from cupola.domain.errors import CupolaError
from cupola.installation import DataFolder
from cupola.settings import load

QUIET_NOTICE = "No logs since"
"""How the notice begins that a log stream gives before it ends because nothing came."""


def logs(
    agent: str | None = None,
    session: str | None = None,
    *,
    tail: int = 100,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative=())] = False,
    data: Path | None = None,
) -> None:
    """Show what a session's container printed; without an agent, the log of a detached server.

    Parameters
    ----------
    agent
        Name of the agent.
    session
        Id of the session; the agent's newest one if it is not given.
    tail
        How many lines to begin with; at most 300 of a session.
    follow
        Go on with new lines as they come.
    data
        Folder of the server to ask.
    """
    if agent is None:
        _server_log(data, tail, follow)
        return
    path = f"/agents/{agent}/sessions/{session or '@newest'}:logstream"
    query = {"tail": str(tail), "follow": str(follow).lower()}
    since = ""
    with connect(data) as client:
        while True:
            last = {"timestamp": since, "stream": "", "message": ""}
            with client.stream_lines(path, query) as lines:
                for entry in _entries(lines, since):
                    print(f"{entry['timestamp']} {entry['stream']:<6} {printable(entry['message'])}", flush=True)
                    last = entry
            if not (last["stream"] == "status" and last["message"].startswith(QUIET_NOTICE)):
                return
            # The server ends a stream that stays quiet: ask for what came after its notice.
            since = last["timestamp"]
            query["tail"] = "300"


def _entries(lines: Iterator[str], since: str) -> Iterator[dict[str, str]]:
    """The entries of a log stream that are later than a time."""
    for line in lines:
        if line.startswith("data: "):
            entry = json.loads(line.removeprefix("data: "))
            if entry["timestamp"] > since:
                yield entry


def _server_log(data: Path | None, tail: int, follow: bool) -> None:
    settings, _ = load({"data": data})
    path = DataFolder(settings.data).server_log
    if not path.exists():
        raise CupolaError("no_log", f"There is no {path}: only a server started with `cupola up --detach` writes one.")
    with path.open(errors="replace") as file:
        for line in deque(file, maxlen=max(0, tail)):
            print(line, end="", flush=True)
        while follow:
            line = file.readline()
            if line:
                print(line, end="", flush=True)
            else:
                time.sleep(0.2)
