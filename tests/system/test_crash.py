"""`kill -9` of the server at awkward moments, and ordinary ends: nothing is left, everything goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.system.platform import Platform, traces

ECHO = "/agents/echo/endpoint/protocols/openai/responses"
DEADLINE = 60.0


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def text(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    said: str = answer.json()["output"][0]["content"][0]["text"]
    return said


@pytest.mark.parametrize("step", [None, "resolve", "unpack", "image", "start"])
def test_kill_in_the_middle_of_a_deploy(
    start_platform: Callable[..., Platform], echo_image: str, step: str | None
) -> None:
    platform = start_platform()
    with platform.http() as http:
        body = {"definition": {"kind": "hosted", "image": echo_image, "memory": "1Gi"}}
        assert http.post("/agents/echo/versions", json=body).json()["status"] == "creating"
        if step is not None:
            wait_until(
                lambda: step in [event["step"] for event in http.get("/agents/echo/versions/1/events").json()["data"]]
            )
    platform.kill()
    restarted = start_platform(platform.data)
    with restarted.http() as http:
        wait_until(lambda: http.get("/agents/echo/versions/1").json()["status"] != "creating")
        assert http.get("/agents/echo/versions/1").json()["status"] == "active", http.get(
            "/agents/echo/versions/1/events"
        ).text
        assert text(http.post(ECHO, json={"input": "again"})) == "Echo: again"


@pytest.mark.parametrize("step", [None, "unpack", "image"])
def test_ctrl_c_in_the_middle_of_a_deploy(
    start_platform: Callable[..., Platform], echo_image: str, step: str | None
) -> None:
    platform = start_platform()
    with platform.http() as http:
        body = {"definition": {"kind": "hosted", "image": echo_image, "memory": "1Gi"}}
        assert http.post("/agents/echo/versions", json=body).json()["status"] == "creating"
        if step is not None:
            events = "/agents/echo/versions/1/events"
            wait_until(lambda: step in [event["step"] for event in http.get(events).json()["data"]])
    assert platform.stop() == 0
    assert traces(platform.data) == []
    with start_platform(platform.data).http() as http:
        wait_until(lambda: http.get("/agents/echo/versions/1").json()["status"] != "creating")
        assert http.get("/agents/echo/versions/1").json()["status"] == "active", http.get(
            "/agents/echo/versions/1/events"
        ).text


def test_kill_in_the_middle_of_an_invoke(
    start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str], tmp_path: Path
) -> None:
    image = agent_image(
        "slow",
        """
import asyncio
from pathlib import Path
from cupola_agent import Agent
agent = Agent()

@agent.responses
async def reply(input: str):
    notes = Path.home() / "notes"
    with notes.open("a") as file:
        file.write(input + ",")
    yield "begun "
    if input == "slow":
        await asyncio.sleep(600)
    yield notes.read_text()

agent.run()
""",
    )
    platform = start_platform()
    assert platform.deploy("slow", image)["status"] == "active"
    path = "/agents/slow/endpoint/protocols/openai/responses"
    begun = threading.Event()

    def read() -> None:
        body = {"input": "slow", "stream": True, "agent_session_id": "kept-session"}
        with platform.http() as http, http.stream("POST", path, json=body) as answer:
            for line in answer.iter_lines():
                if "begun" in line:
                    begun.set()

    def ask() -> None:
        with pytest.raises(httpx2.RemoteProtocolError):
            read()

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(DEADLINE)
    platform.kill()
    asking.join()
    assert any(trace.startswith("process") for trace in traces(platform.data))
    restarted = start_platform(platform.data)
    assert traces(platform.data) == []
    with restarted.http() as http:
        answer = http.post(path, json={"input": "fast", "agent_session_id": "kept-session"})
        assert text(answer) == "begun slow,fast,"


def test_kill_while_many_sandboxes_run_and_start(start_platform: Callable[..., Platform], echo_image: str) -> None:
    platform = start_platform()
    assert platform.deploy("echo", echo_image)["status"] == "active"
    variables = platform.client_variables()

    def ask(number: int) -> None:
        try:
            with platform.http() as http:
                http.post(ECHO, json={"input": "count", "agent_session_id": f"session-{number}"})
        except (httpx2.TransportError, KeyError):
            return

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    wait_until(lambda: sum(trace.startswith("process") for trace in traces(platform.data)) >= 3)
    platform.kill()
    for thread in threads:
        thread.join()
    restarted = start_platform(platform.data)
    assert traces(platform.data) == []
    assert restarted.client_variables()["IDENTITY_HEADER"] == variables["IDENTITY_HEADER"]
    with restarted.http() as http:
        for number in range(12):
            answer = http.post(ECHO, json={"input": "count", "agent_session_id": f"session-{number}"})
            assert text(answer) in ("count: 1", "count: 2")


def test_what_a_dead_server_left_is_swept_though_its_data_is_gone(
    start_platform: Callable[..., Platform], echo_image: str, tmp_path: Path
) -> None:
    dead = Platform(tmp_path / "dead").start()
    assert dead.deploy("echo", echo_image)["status"] == "active"
    with dead.http() as http:
        text(http.post(ECHO, json={"input": "x"}))
    dead.kill()
    assert traces(dead.data) != []
    name = (dead.data / "installation").read_text()
    for path in sorted(dead.data.rglob("*"), reverse=True):
        if path.name == "installation":
            continue
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    start_platform()
    assert (dead.data / "installation").read_text() == name
    assert traces(dead.data) == []


def test_stopping_lets_a_request_finish(
    start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str]
) -> None:
    image = agent_image(
        "pause",
        """
import asyncio
from cupola_agent import Agent
agent = Agent()

@agent.responses
async def reply(input: str):
    yield "begun "
    await asyncio.sleep(1)
    yield "and done"

agent.run()
""",
    )
    platform = start_platform()
    assert platform.deploy("pause", image)["status"] == "active"
    begun = threading.Event()
    lines: list[str] = []

    def ask() -> None:
        with platform.http() as http, http.stream(
            "POST", "/agents/pause/endpoint/protocols/openai/responses", json={"input": "x", "stream": True}
        ) as answer:  # fmt: skip
            for line in answer.iter_lines():
                lines.append(line)
                if "begun" in line:
                    begun.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert begun.wait(DEADLINE)
    assert platform.stop() == 0
    asking.join()
    assert "event: response.completed" in lines


def test_a_second_server_on_the_same_data_is_refused(start_platform: Callable[..., Platform]) -> None:
    platform = start_platform()
    second = platform.run("up", "--https-port", "0", "--http-port", "0")
    assert second.returncode == 1
    assert "already running" in second.stderr


def test_a_taken_port_names_the_setting(start_platform: Callable[..., Platform], tmp_path: Path) -> None:
    taken = start_platform().client_variables()["IDENTITY_ENDPOINT"].split(":")[2].partition("/")[0]
    other = Platform(tmp_path / "other", {"CUPOLA_DATA": str(tmp_path / "other")})
    for flag, variable in (("--http-port", "CUPOLA_HTTP_PORT"), ("--https-port", "CUPOLA_HTTPS_PORT")):
        free = "--https-port" if flag == "--http-port" else "--http-port"
        for arguments in (("up",), ("up", "--detach")):
            refused = other.run(*arguments, flag, taken, free, "0")
            assert refused.returncode == 1
            assert taken in refused.stderr
            assert flag in refused.stderr
            assert variable in refused.stderr
            assert "Traceback" not in refused.stderr


def test_detach_down_and_env(tmp_path: Path) -> None:
    platform = Platform(tmp_path / "data")
    refused = platform.run("env")
    assert refused.returncode == 1
    assert "cupola up" in refused.stderr
    assert refused.stdout == ""
    up = platform.run("up", "--detach", "--https-port", "0", "--http-port", "0")
    assert up.returncode == 0, up.stderr
    try:
        assert platform.client_variables()["FOUNDRY_PROJECT_ENDPOINT"].endswith("/api/projects/default")
        with platform.http() as http:
            assert http.get("/agents").json()["data"] == []
        assert "ready" in platform.run("logs").stdout
        assert "already running" in platform.run("up", "--detach").stderr
    finally:
        assert platform.run("down").returncode == 0
    assert platform.run("env").returncode == 1
    assert platform.run("down").stdout.startswith("No server")
    assert traces(platform.data) == []
