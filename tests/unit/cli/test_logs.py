from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cupola.cli import logs as module


class Streams:
    """A server whose log streams are known beforehand; it notes what was asked for."""

    def __init__(self, *streams: list[tuple[str, str, str]]) -> None:
        self._streams = iter(streams)
        self.asked: list[dict[str, str]] = []

    @contextlib.contextmanager
    def stream_lines(self, path: str, query: dict[str, str]) -> Iterator[Iterator[str]]:
        assert path == "/agents/echo/sessions/session-1:logstream"
        self.asked.append(dict(query))
        yield self._lines(next(self._streams))

    def _lines(self, entries: list[tuple[str, str, str]]) -> Iterator[str]:
        for timestamp, stream, message in entries:
            yield "event: log"
            yield "data: " + json.dumps({"timestamp": timestamp, "stream": stream, "message": message})
            yield ""

    @contextlib.contextmanager
    def connect(self, data: Path | None) -> Iterator[Streams]:
        assert data is None
        yield self


def shown(streams: Streams, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setattr(module, "connect", streams.connect)
    module.logs("echo", "session-1", tail=7, follow=True)
    return [line[3:] for line in capsys.readouterr().out.splitlines()]


def test_following_goes_on_when_the_server_ended_a_quiet_stream(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    streams = Streams(
        [("01", "stdout", "one"), ("02", "status", "No logs since last 60 seconds")],
        [("01", "stdout", "one"), ("03", "stdout", "two"), ("04", "status", "No logs since last 60 seconds")],
        [("03", "stdout", "two"), ("05", "status", "The sandbox was stopped.")],
    )
    assert shown(streams, monkeypatch, capsys) == [
        "stdout one",
        "status No logs since last 60 seconds",
        "stdout two",
        "status No logs since last 60 seconds",
        "status The sandbox was stopped.",
    ]
    assert [query["tail"] for query in streams.asked] == ["7", "300", "300"]


@pytest.mark.parametrize(
    "last",
    [
        [("03", "stdout", "No logs since last 60 seconds")],
        [("03", "status", "The sandbox was stopped.")],
        [("01", "stdout", "one")],
        [],
    ],
)
def test_following_ends_with_the_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], last: list[tuple[str, str, str]]
) -> None:
    streams = Streams([("02", "status", "No logs since last 60 seconds")], last)
    shown(streams, monkeypatch, capsys)
    assert len(streams.asked) == 2
