"""The official clients, unmodified, each in an environment of its own, against `cupola up`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.system.platform import Platform

CLIENTS = Path(__file__).parent / "clients"


def run(python: Path, platform: Platform, script: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [python, CLIENTS / script, *arguments],
        env=platform.client_variables(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_the_founding_example_runs_with_2_0_0b3(
    platform: Platform, sdk_python: Callable[[str], Path], echo_image: str
) -> None:
    assert run(sdk_python("2.0.0b3"), platform, "founding_sync.py", echo_image) == [
        "Created hosted agent: data-processor-agent",
        "Version: 1",
        "State: creating",
        "Listed: 1, State: creating",
        "Versions left: 0",
    ]


def test_the_asynchronous_founding_example_runs_with_2_0_0b3(
    platform: Platform, sdk_python: Callable[[str], Path], echo_image: str
) -> None:
    assert run(sdk_python("2.0.0b3"), platform, "founding_async.py", echo_image) == [
        "Status: active",
        "Listed: ['1']",
        "Answer: Echo: hello",
        "Deleted: True",
    ]


def test_the_whole_lifecycle_with_2_0_0b3(
    platform: Platform, sdk_python: Callable[[str], Path], echo_image: str
) -> None:
    lines = run(sdk_python("2.0.0b3"), platform, "lifecycle_old.py", echo_image, "agent")
    first = ["created: old-style", "created twice: conflict", "updated to: 2"]
    assert lines == [*first, *OLD_LIFECYCLE, "deleted with its sessions"]


def test_the_whole_lifecycle_with_2_0_0(platform: Platform, sdk_python: Callable[[str], Path], echo_image: str) -> None:
    assert run(sdk_python("2.0.0"), platform, "lifecycle_old.py", echo_image, "agent_reference") == [
        *OLD_LIFECYCLE,
        "delete with running sessions: conflict",
    ]
    delete_agent(platform, "old-style")


def test_the_whole_lifecycle_with_2_10_0(
    platform: Platform, sdk_python: Callable[[str], Path], echo_image: str
) -> None:
    assert run(sdk_python("2.10.0"), platform, "lifecycle_new.py", echo_image) == [
        "created: new-style 1 creating",
        "status: active principal: True",
        "posted again: 1",
        "agent: new-style 1 True",
        "plain: Echo: plain words",
        "stream: response.created response.completed Echo: a b",
        "header: True",
        "async: ['new-style', 'data-processor-agent']",
        "async plain: Echo: y",
        "async stream: response.completed",
        "delete with running sessions: 409",
        "deleted: True",
        "deleted agent: True",
        "gone: not_found",
    ]


def test_sessions_with_2_10_0(platform: Platform, sdk_python: Callable[[str], Path], echo_image: str) -> None:
    assert run(sdk_python("2.10.0"), platform, "sessions_new.py", echo_image) == [
        "created: my-own-session idle 1",
        "twice: session_already_exists",
        "answer: Echo: hello my-own-session",
        "then: active",
        "stopped: idle True True",
        "again: Echo: x",
        "listed: [True, False]",
        "gone: session_not_found",
        "async: [True]",
    ]


def test_session_files_with_2_10_0(platform: Platform, sdk_python: Callable[[str], Path], echo_image: str) -> None:
    assert run(sdk_python("2.10.0"), platform, "session_files_new.py", echo_image) == [
        "uploaded before the first start: remote/data_file1.txt 8",
        "listed while it sleeps: ['data_file1.txt', 'large.bin']",
        "made by the agent: 1",
        "answer: count: 2",
        "downloaded while it runs: 1000000",
        "not empty: 409",
        "gone: not_found",
        "log: True",
        "alice: ['session-of-alice']",
        "bob: session_not_found",
    ]


OLD_LIFECYCLE = [
    "status: active",
    "agents: ['old-style', 'data-processor-agent']",
    "versions: ['1', '2']",
    "plain: Echo: plain words True",
    "same session: True",
    "stream: ['Echo:', ' a', ' b', ' c']",
    "deleted version: True",
]


def delete_agent(platform: Platform, name: str) -> None:
    with platform.http() as http:
        assert http.delete(f"/agents/{name}", params={"force": "true"}).status_code == 200
