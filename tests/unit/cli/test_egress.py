from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cupola.cli import egress as module
from cupola.cli.main import app
from cupola.domain.egress import parse_egress


class Server:
    """A server that keeps the policy it is given."""

    def __init__(self) -> None:
        self.policy: dict[str, object] = {"mode": "open", "names": [], "private_ranges": []}

    def get(self, path: str) -> object:
        assert path == "/egress"
        return self.policy

    def put(self, path: str, body: object) -> object:
        assert path == "/egress"
        self.policy = parse_egress(json.loads(json.dumps(body))).to_json()
        return self.policy

    @contextlib.contextmanager
    def connect(self, data: Path | None) -> Iterator[Server]:
        assert data is None
        yield self


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(module, "connect", made.connect)
    return made


def run(*words: str) -> None:
    app(["egress", *words], result_action="return_value")


def test_a_policy_is_set_and_shown(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ("--private-range", "10.1.0.0/16"), ("--private-range", "10.2.0.0/16")
    run("set", *first, "allow-list", "api.example:443", "*.example.org", *second)
    assert server.policy == {
        "mode": "allow-list",
        "names": ["api.example:443", "*.example.org"],
        "private_ranges": ["10.1.0.0/16", "10.2.0.0/16"],
    }
    told = capsys.readouterr().out
    assert [line.rstrip() for line in told.splitlines()] == [
        "Mode            allow-list",
        "Names           api.example:443",
        "                *.example.org",
        "Private ranges  10.1.0.0/16",
        "                10.2.0.0/16",
    ]
    run("show")
    assert capsys.readouterr().out == told
    run("show", "--json")
    assert json.loads(capsys.readouterr().out) == server.policy


@pytest.mark.parametrize("mode", ["open", "none"])
def test_a_mode_alone_is_a_policy(server: Server, capsys: pytest.CaptureFixture[str], mode: str) -> None:
    run("set", mode)
    assert server.policy == {"mode": mode, "names": [], "private_ranges": []}
    assert capsys.readouterr().out == f"Mode            {mode}\n"


@pytest.mark.parametrize("words", [(), ("all",), ("allow_list",)])
def test_other_modes_are_wrong_usage(server: Server, words: tuple[str, ...]) -> None:
    before = server.policy
    with pytest.raises(SystemExit):
        run("set", *words)
    assert server.policy == before
