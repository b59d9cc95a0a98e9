"""The two processes of a platform that root has started."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cupola.node.privileges import NUMBER
from tests.system.platform import Platform, traces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="without root there is one process")

ECHO = "/agents/echo/endpoint/protocols/openai/responses"
Start = Callable[..., Platform]


def status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def listening(process: int) -> int:
    """How many TCP sockets the process listens with."""
    inodes = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            inodes.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    lines = [line.split() for line in Path(f"/proc/{process}/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes for fields in lines)


def test_who_faces_the_network_has_no_rights(start_platform: Start, echo_image: str) -> None:
    platform = start_platform()
    assert platform.deploy("echo", echo_image)["status"] == "active"
    with platform.http() as http:
        http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"}).raise_for_status()
    server = platform.server
    status = status_of(server)
    assert status["Uid"].split() == status["Gid"].split() == [str(NUMBER)] * 4
    assert status["Groups"] == ""
    assert status["NoNewPrivs"] == "1"
    for kind in ("Inh", "Prm", "Eff", "Amb"):
        assert int(status[f"Cap{kind}"], 16) == 0
    assert listening(server) == 2
    assert listening(platform.pid) == 0


def groups_of(process: int) -> list[str]:
    """The files of control groups that the process has open, with the flags they are open with."""
    opened = []
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            path = descriptor.readlink()
            flags = Path(f"/proc/{process}/fdinfo/{descriptor.name}").read_text().split("flags:")[1].split()[0]
        except FileNotFoundError:
            continue
        if path.is_relative_to("/sys/fs/cgroup"):
            opened.append(f"{path.name} {int(flags, 8) & os.O_ACCMODE}")
    return opened


def test_the_server_may_freeze_and_thaw_its_sandboxes_and_nothing_else(start_platform: Start, echo_image: str) -> None:
    platform = start_platform(CUPOLA_POOL_SIZE="0")
    assert platform.deploy("echo", echo_image)["status"] == "active"
    freezers = {f"freezer.state {os.O_WRONLY}", f"cgroup.freeze {os.O_WRONLY}"}
    with platform.http() as http:
        for session in ("session-1", "session-2"):
            http.post(ECHO, json={"input": "hello", "agent_session_id": session}).raise_for_status()
        opened = groups_of(platform.server)
        assert len(opened) == 2
        assert set(opened) <= freezers
        http.delete("/agents/echo/endpoint/sessions/session-1").raise_for_status()
        assert len(groups_of(platform.server)) == 1


def test_the_server_sees_neither_files_of_sessions_nor_what_is_beside_them(
    start_platform: Start, echo_image: str
) -> None:
    platform = start_platform()
    assert platform.deploy("echo", echo_image)["status"] == "active"
    with platform.http() as http:
        http.post(ECHO, json={"input": "count", "agent_session_id": "session-1"}).raise_for_status()
    assert list((platform.data / "volumes").glob("*/home/*"))
    tries = f"""
import os
from pathlib import Path
data = Path({str(platform.data)!r})
for path in (data / "volumes", data / "sandboxes", data / "lock", data / "installation", data / "server.log"):
    try:
        os.stat(path)
    except OSError:
        continue
    print("sees", path)
for path in (data / "new", data / "images" / "new", data / "images" / "layers" / "new"):
    try:
        path.mkdir()
    except OSError:
        continue
    print("makes", path)
print("keeps", sorted(os.listdir(data / "server")))
"""
    # Another process with the server's user and mounts.
    entered = [
        "nsenter",
        "--mount",
        f"--target={platform.server}",
        "--setuid",
        str(NUMBER),
        "--setgid",
        str(NUMBER),
    ]
    printed = subprocess.run(
        [*entered, "--wd=/", sys.executable, "-c", tries], capture_output=True, text=True, check=True, timeout=30
    )
    assert printed.stdout.splitlines()[0].startswith("keeps ['administrator.secret', 'cupola.db'"), printed.stdout


def test_a_server_that_is_killed_takes_the_node_and_every_sandbox_along(start_platform: Start, echo_image: str) -> None:
    platform = start_platform()
    assert platform.deploy("echo", echo_image)["status"] == "active"
    with platform.http() as http:
        http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"}).raise_for_status()
    os.kill(platform.server, signal.SIGKILL)
    assert platform.wait() == 128 + signal.SIGKILL
    assert traces(platform.data) == []
    restarted = start_platform(platform.data)
    with restarted.http() as http:
        http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"}).raise_for_status()


def test_a_node_that_is_killed_takes_the_server_along(start_platform: Start) -> None:
    platform = start_platform()
    watched = os.pidfd_open(platform.server)
    platform.kill()
    assert select.select([watched], [], [], 10)[0], "the server lives on without its node"
    os.close(watched)
    start_platform(platform.data)


def test_a_data_folder_can_change_hands(start_platform: Start, echo_image: str) -> None:
    platform = start_platform(CUPOLA_SERVER_USER="root")
    assert platform.deploy("echo", echo_image)["status"] == "active"
    assert status_of(platform.pid)["Uid"].split()[0] == "0"
    assert listening(platform.pid) == 2
    platform.stop()
    for user, number in (("", NUMBER), ("nobody", 65534), ("root", 0)):
        again = start_platform(platform.data, CUPOLA_SERVER_USER=user)
        with again.http() as http:
            answer = http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"})
        assert answer.json()["output"][0]["content"][0]["text"] == "Echo: hello"
        assert (platform.data / "server" / "cupola.db").stat().st_uid == number
        again.stop()


def test_a_user_that_does_not_exist_is_named(start_platform: Start, tmp_path: Path) -> None:
    platform = Platform(tmp_path / "data", {"CUPOLA_SERVER_USER": "nobody-of-that-name"})
    failed = platform.run("up")
    assert failed.returncode == 1
    said = "cupola: server_user: there is no user 'nobody-of-that-name' on this machine."
    assert failed.stderr.splitlines()[-1] == said
