"""A platform that an ordinary user has started, with control groups delegated to that user and without."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from cupola.images.build import LayoutWriter
from cupola.installation import DataFolder
from tests.system.as_user import COUNT, NUMBER, SUBORDINATE
from tests.system.ordinary import OrdinaryPlatform, OrdinaryUser, living
from tests.system.platform import traces
from tests.system.test_node import status_of

ECHO = "/agents/echo/endpoint/protocols/openai/responses"
DEADLINE = 60.0
INVOCATIONS = [{"protocol": "invocations", "version": "1.0.0"}]
HOG = """
from cupola_agent import Agent, Request
agent = Agent()
kept = []

@agent.invocations
def invoke(request: Request):
    kept.append(b"x" * int(request.body))
    return {}

agent.run()
"""
LISTING = """
import http.server, json, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"{}")

    def do_POST(self):
        # A body that is left unread would take the answer with it.
        while size := int(self.rfile.readline(), 16):
            self.rfile.read(size + 2)
        self.rfile.readline()
        lists = [sorted(os.listdir(path)) for path in ("/data", "/data/kept")]
        self.answer(json.dumps([[os.getuid(), os.getgid()], *lists]).encode())

    def answer(self, body):
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", 8088), Handler).serve_forever()
"""
Start = Callable[..., OrdinaryPlatform]
Delegate = Callable[..., tuple[Path, ...]]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def said(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["output"][0]["content"][0]["text"]
    return text


def is_over(platform: OrdinaryPlatform) -> bool:
    """Whether nobody is left who could still tidy up."""
    return not living() and not DataFolder(platform.data).is_locked()


def deploy(platform: OrdinaryPlatform, name: str, image: str, **definition: object) -> None:
    # It was built for root alone.
    subprocess.run(["chmod", "-R", "a+rX", Path(image.split(":")[1]).parent], check=True)
    version = platform.deploy(name, image, **definition)
    assert version["status"] == "active", version["error"]


@pytest.fixture
def delegate(ordinary_user: OrdinaryUser) -> Iterator[Delegate]:
    """Makes control groups that belong to the user, which must be empty at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda hybrid=False: stack.enter_context(ordinary_user.delegated(hybrid=hybrid))


@pytest.fixture
def start(ordinary_user: OrdinaryUser, delegate: Delegate, images: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts platforms that are stopped at the end, before `delegate`, and proves that nothing of them is left."""
    folder = ordinary_user.directory(tmp_path / "user")
    started: list[OrdinaryPlatform] = []

    def start(groups: tuple[Path, ...] = (), **settings: str) -> OrdinaryPlatform:
        request = ordinary_user.request(folder, (images,), groups)
        platform = OrdinaryPlatform(folder / "data", request, settings)
        started.append(platform)
        platform.start()
        return platform

    yield start
    for platform in started:
        platform.stop()
    wait_until(lambda: not living())
    for platform in started:
        assert traces(platform.data) == []


def test_an_ordinary_user_runs_agents_and_keeps_their_files(start: Start, echo_image: str) -> None:
    platform = start()
    deploy(platform, "echo", echo_image)
    with platform.http() as http:
        for number in (1, 2):
            answer = http.post(ECHO, json={"input": "count", "agent_session_id": "session-1"})
            assert said(answer) == f"count: {number}"
        files = "/agents/echo/endpoint/sessions/session-1/files/content"
        assert http.get(files, params={"path": "count"}).content == b"2"
        assert http.put(files, params={"path": "count"}, content=b"41").status_code == 201
        assert said(http.post(ECHO, json={"input": "count", "agent_session_id": "session-1"})) == "count: 42"
    assert platform.stop() == 0
    again = start()
    with again.http() as http:
        assert said(http.post(ECHO, json={"input": "count", "agent_session_id": "session-1"})) == "count: 43"


def test_nothing_of_it_has_rights_over_the_host(start: Start, echo_image: str) -> None:
    platform = start()
    deploy(platform, "echo", echo_image)
    with platform.http() as http:
        said(http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"}))
    users = living()
    assert users[platform.pid] == users[platform.server] == users[platform.node] == NUMBER
    # The agent's user, 1000 in its image.
    assert SUBORDINATE + 1000 in users.values()
    server = status_of(platform.server)
    assert server["NoNewPrivs"] == "1"
    assert int(server["CapEff"], 16) == 0
    assert Path(f"/proc/{platform.node}/ns/user").readlink() != Path("/proc/self/ns/user").readlink()
    for process, user in users.items():
        if user != NUMBER:
            # Root inside is one of the user's subordinate ids, not the user.
            assert Path(f"/proc/{process}/uid_map").read_text().split() == ["0", f"{SUBORDINATE}", f"{COUNT}"]


def test_files_that_a_layer_hides_are_hidden(start: Start, images: Path, base_root: Path) -> None:
    writer = LayoutWriter(images / "listing")
    layers = [
        writer.add_layer(base_root),
        writer.add_files({"data/gone": "", "data/kept/hidden": "", "data/stays": ""}),
        writer.add_files({"data/.wh.gone": "", "data/kept/.wh..wh..opq": "", "data/kept/new": "", "main.py": LISTING}),
    ]
    writer.add_image(layers, tag="1", entrypoint=("python3", "/main.py"), user="agent")
    platform = start()
    deploy(platform, "listing", f"oci:{images}/listing:1", protocol_versions=INVOCATIONS)
    with platform.http() as http:
        answer = http.post("/agents/listing/endpoint/protocols/invocations", content=b"{}")
    assert json.loads(answer.content) == [[1000, 1000], ["kept", "stays"], ["new"]]


def test_who_has_delegated_groups_has_limits(
    start: Start, delegate: Delegate, agent_image: Callable[[str, str], str]
) -> None:
    delegated = delegate()
    platform = start(delegated)
    assert "not limited" not in platform.log.read_text()
    deploy(platform, "hog", agent_image("hog", HOG), protocol_versions=INVOCATIONS)
    body = {"agent_session_id": "session-1"}
    with platform.http() as http:
        hog = "/agents/hog/endpoint/protocols/invocations"
        assert http.post(hog, params=body, content=b"1000").status_code == 200
        assert http.post(hog, params=body, content=f"{2 << 30}".encode()).status_code >= 500
        log = platform.run("logs", "hog").stdout
    assert "was killed because it used more memory than its limit" in log


def test_an_idle_sandbox_is_frozen_where_a_freezer_is_delegated(
    start: Start, delegate: Delegate, echo_image: str
) -> None:
    delegated = delegate()
    platform = start(delegated, CUPOLA_FREEZE_AFTER="0.2", CUPOLA_POOL_SIZE="0")
    deploy(platform, "echo", echo_image)

    def frozen() -> int:
        found = 0
        for group in delegated:
            for state in group.glob("cupola-*/*/freezer.state"):
                found += state.read_text().strip() == "FROZEN"
            for state in group.glob("cupola-*/*/cgroup.events"):
                found += "frozen 1" in state.read_text()
        return found

    with platform.http() as http:
        for number in (1, 2):
            answer = http.post(ECHO, json={"input": "count", "agent_session_id": "session-1"})
            assert said(answer) == f"count: {number}"
            wait_until(lambda: frozen() == 1)


def test_without_delegation_sandboxes_stay_awake_and_are_not_limited(start: Start, echo_image: str) -> None:
    platform = start(CUPOLA_FREEZE_AFTER="0.1")
    deploy(platform, "echo", echo_image)
    with platform.http() as http:
        said(http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"}))
        time.sleep(0.5)
        said(http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"}))
    log = platform.log.read_text()
    assert "sandboxes are not limited in cpu, memory, pids" in log
    assert "could not be frozen" not in log


def test_a_project_that_wants_a_way_out_is_told_that_there_is_none(start: Start, echo_image: str) -> None:
    platform = start()
    assert "the default egress policy is none: only root may connect sandboxes" in platform.log.read_text()
    with platform.http() as http:
        assert http.put("/egress", json={"mode": "open"}).status_code == 200
    version = platform.deploy("echo", echo_image)
    assert version["status"] == "failed"
    assert "only root may connect sandboxes to the host's network" in json.dumps(version)


@pytest.mark.parametrize("part", ["pid", "server", "node"])
@pytest.mark.parametrize("groups", ["delegated", "version 2 beside version 1", "nothing delegated"])
def test_whichever_process_is_killed_nothing_is_left(
    start: Start, ordinary_user: OrdinaryUser, delegate: Delegate, echo_image: str, part: str, groups: str
) -> None:
    hybrid = groups.startswith("version 2")
    if hybrid and not ordinary_user.has_hybrid:
        pytest.skip("this host has one version of control groups")
    given = () if groups == "nothing delegated" else delegate(hybrid=hybrid)
    platform = start(given, CUPOLA_FREEZE_AFTER="0.1")
    deploy(platform, "echo", echo_image)
    with platform.http() as http:
        said(http.post(ECHO, json={"input": "count", "agent_session_id": "session-1"}))
    os.kill(getattr(platform, part), signal.SIGKILL)
    assert platform.wait() != 0
    wait_until(lambda: is_over(platform))
    assert traces(platform.data) == []
    again = start(given)
    with again.http() as http:
        assert said(http.post(ECHO, json={"input": "count", "agent_session_id": "session-1"})) == "count: 2"


def test_what_is_left_when_all_are_killed_is_removed_by_the_next_start(
    start: Start, delegate: Delegate, echo_image: str
) -> None:
    delegated = delegate()
    platform = start(delegated)
    deploy(platform, "echo", echo_image)
    for process in (platform.pid, platform.node, platform.server):
        os.kill(process, signal.SIGSTOP)
    for process in (platform.node, platform.server, platform.pid):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: is_over(platform))
    again = start(delegated)
    with again.http() as http:
        assert said(http.post(ECHO, json={"input": "hello", "agent_session_id": "session-1"})) == "Echo: hello"


def test_doctor_says_what_an_ordinary_user_has_and_lacks(
    ordinary_user: OrdinaryUser, delegate: Delegate, tmp_path: Path
) -> None:
    folder = ordinary_user.directory(tmp_path / "user")
    with_all = ordinary_user.request(folder, groups=delegate())
    without = ordinary_user.request(folder, subordinate=False)

    def checks(platform: OrdinaryPlatform) -> dict[str, tuple[str, str, str]]:
        listed = json.loads(platform.run("doctor", "--json").stdout)["checks"]
        return {
            check["name"]: (check["verdict"], check["finding"], check["fix"])
            for check in listed
            if check["group"] == "driver oci"
        }

    found = checks(OrdinaryPlatform(folder / "data", with_all))
    assert found["user namespaces"][0] == "ok"
    assert found["mapping of ids"] == ("ok", "newuidmap and newgidmap", "")
    assert found["subordinate ids"] == ("ok", f"{COUNT} of users, {COUNT} of groups", "")
    assert found["control groups"] == ("ok", "delegated to this user, with memory, pids, cpu, freezer", "")
    assert found["network"][:2] == ("optional", "sandboxes have no way out without root")
    lacking = OrdinaryPlatform(folder / "data", without)
    found = checks(lacking)
    assert found["subordinate ids"][:2] == ("missing", "this user has no line in /etc/subuid and /etc/subgid")
    assert "usermod --add-subuids" in found["subordinate ids"][2]
    assert found["control groups"][0] == "optional"
    refused = lacking.run("up")
    assert refused.returncode == 1
    assert "this user has no line in /etc/subuid and /etc/subgid" in refused.stderr
    assert "usermod --add-subuids" in refused.stderr


def test_what_a_sandbox_finds_mounted_gives_it_nothing_of_the_host(
    start: Start, agent_image: Callable[[str, str], str]
) -> None:
    image = agent_image(
        "mounts",
        """
import os
from pathlib import Path
from cupola_agent import Agent, Request
agent = Agent()

@agent.invocations
def invoke(request: Request):
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return {"mounts": [[line[4], line[5]] for line in lines], "groups": os.listdir("/sys/fs/cgroup")}

agent.run()
""",
    )
    platform = start()
    deploy(platform, "mounts", image, protocol_versions=INVOCATIONS)
    with platform.http() as http:
        answer = http.post("/agents/mounts/endpoint/protocols/invocations", content=b"{}")
    found = answer.json()
    flags = {place: set(options.split(",")) for place, options in found["mounts"]}
    for place in ("/", "/home/session", "/files"):
        assert {"nosuid", "nodev"} <= flags[place], place
    for place in ("/sys", "/sys/fs/cgroup", "/proc/sys", "/etc/hosts", "/etc/resolv.conf"):
        assert "ro" in flags[place], place
    assert found["groups"] == []
