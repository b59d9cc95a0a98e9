"""`python -m cupola_agent run`: what it serves, what it says, and starting again on changes."""

import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

STARLETTE = """
from cupola_agent import Agent
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
agent = Agent()
agent.responses(lambda input: "hi " + input)
app = Starlette(routes=[Route("/readiness", lambda _: PlainTextResponse("app")), Mount("/agent", app=agent)])
"""


@contextmanager
def running(folder: Path, port: int, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cupola_agent", "run", *arguments, "--port", str(port)],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def ask(port: int, method: str, path: str, body: str | None = None) -> tuple[int, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        connection.request(method, path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def answer_when_there(port: int, path: str, expected: str) -> None:
    for _ in range(3000):
        with suppress(ConnectionError, http.client.HTTPException):
            if ask(port, "GET", path)[1] == expected:
                return
        time.sleep(0.01)
    raise AssertionError(f"{path} never gave {expected!r}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "cupola-agent: there is no module named 'none' in "),
        (["main:other"], "cupola-agent: 'main' has no agent or ASGI app named 'other'"),
        (["main"], "cupola-agent: 'main' has no agent or ASGI app named 'agent' or 'app'"),
        (["main:number"], "cupola-agent: 'main:number' is int, neither an Agent nor an ASGI app"),
        (["main:number", "--port", "70000"], "port must be an integer from 1 to 65535, not '70000'"),
        ([], "the following arguments are required: MODULE[:NAME]"),
        (["broken"], "ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_what_cannot_be_served_is_said_in_a_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "main.py").write_text("number = 1\n")
    (tmp_path / "broken.py").write_text("import not_installed\n")
    command = [sys.executable, "-m", "cupola_agent", "run", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == ("broken" in arguments)


def test_help_says_what_there_is() -> None:
    command = [sys.executable, "-m", "cupola_agent", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert all(word in done.stdout for word in ("MODULE[:NAME]", "--host", "--port", "--reload"))


def test_an_asgi_app_that_mounts_an_agent(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "main.py").write_text(STARLETTE)
    with running(tmp_path, free_port, "main:app"):
        answer_when_there(free_port, "/readiness", "app")
        status, body = ask(free_port, "POST", "/agent/responses", '{"input": "you", "store": false}')
        assert status == 200
        assert "hi you" in body
        assert ask(free_port, "GET", "/agent/readiness") == (200, '{"status":"healthy"}')


def test_a_change_starts_it_again_and_a_syntax_error_waits_for_the_next(tmp_path: Path, free_port: int) -> None:
    def write(answer: str) -> None:
        (tmp_path / "parts" / "text.py").write_text(f"ANSWER = {answer}\n")

    (tmp_path / "parts").mkdir()
    write("'one'")
    (tmp_path / "main.py").write_text(
        "from cupola_agent import Agent\nfrom parts.text import ANSWER\nagent = Agent()\n"
        "agent.invocations(lambda: None)\nagent.get_invocation(lambda: ANSWER)\n"
    )
    with running(tmp_path, free_port, "main", "--reload") as process:
        answer_when_there(free_port, "/invocations/x", "one")
        write("'two'")
        answer_when_there(free_port, "/invocations/x", "two")
        write("'three")
        assert process.stderr is not None
        while "waiting for a change" not in (line := process.stderr.readline()):
            assert line
        write("'four'")
        answer_when_there(free_port, "/invocations/x", "four")
        process.terminate()
        assert process.wait(30) == 0
        with pytest.raises(ConnectionRefusedError):
            ask(free_port, "GET", "/readiness")
