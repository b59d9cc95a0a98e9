from __future__ import annotations

from collections.abc import Callable

import pytest

from cupola import __version__
from cupola.cli import main as module
from cupola.cli.versions import _line, printable
from cupola.domain.errors import CupolaError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain caf\u00e9 \u4e2d", "plain caf\u00e9 \u4e2d"),
        ("two\n\tlines", "two\n\tlines"),
        ("\x1b[31mred\x1b]0;title\x07", "\ufffd[31mred\ufffd]0;title\ufffd"),
        ("a\rb\x00c\x7f\x9b", "a\ufffdb\ufffdc\ufffd\ufffd"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
    ],
)
def test_text_of_an_agent_cannot_steer_the_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_event_is_one_line_without_control_characters() -> None:
    event = {"at_ms": 1_800_000_000_042, "step": "pull", "message": "\x1b[2Jdone", "duration_ms": 12.4, "failed": False}
    line = _line(event)
    assert line.endswith(".042      12 ms  pull       \ufffd[2Jdone")
    assert "ms" not in _line({**event, "duration_ms": None})


def failing(error: BaseException) -> Callable[[], None]:
    def app() -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CupolaError("not_running", "No server is running."), 1, "cupola: No server is running.\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_for_people_is_one_message_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    monkeypatch.setattr(module, "app", failing(error))
    with pytest.raises(SystemExit) as caught:
        module.main()
    assert caught.value.code == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help"], "Hosted agents on machines you own."),
        (["up", "--help"], "--detach"),
        (["versions", "show", "--help"], "--json"),
        (["--version"], __version__),
    ],
)
def test_help_is_printed_without_a_server(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    module.app(arguments, result_action="return_value")
    assert said in capsys.readouterr().out
