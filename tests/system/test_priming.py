"""Unmodified agents in primed sandboxes: what differs from session to session is right in each, and who cannot be primed
starts cold and is told why."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scripts.build_sample import COMMAND, build
from tests.system.platform import Platform, traces

READY_DEADLINE = 30.0
PROTOCOLS = [{"protocol": "invocations", "version": "2.0.0"}, {"protocol": "responses", "version": "2.0.0"}]

SERVER = '''
import http.server, json, os, sys

class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        # That of the library looks up the name of the host.
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "agent", self.server_address[1]

def serve(answer):
    """Answers `POST /invocations` with what `answer` makes of the body."""
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(b"{}")

        def do_POST(self):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            self.reply(json.dumps(answer(json.loads(body))).encode())

        def reply(self, body):
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''
OBSERVER = """
import json, logging, os, random, secrets, signal, socket, ssl, sys, threading, time, uuid
import drawn, identity, server, stamp

def draw():
    return {
        "random": random.random(), "at import": drawn.NUMBER, "uuid1": str(uuid.uuid1()), "uuid4": str(uuid.uuid4()),
        "secrets": secrets.token_hex(), "urandom": os.urandom(16).hex(), "hash": hash("text"),
        "openssl": ssl.RAND_bytes(16).hex(),
    }

def observe(asked):
    if "write" in asked:
        with open(os.path.join(os.environ["HOME"], asked["write"]), "w") as file:
            file.write(asked["write"])
    if "package" in asked:
        import site
        os.makedirs(site.getusersitepackages())
    with os.popen("env") as child:
        inherited = sorted(child.read().splitlines())
    return {
        "environment": dict(os.environ), "inherited": inherited, "imported id": identity.ID, "imported guid": identity.GUID,
        "stamp": stamp.AT, "log start": logging.LogRecord("", 0, "", 0, "", (), None).relativeCreated, "clock": time.time(),
        "hostname": [socket.gethostname(), os.uname().nodename],
        "home": sorted(os.listdir(os.environ["HOME"])), "files": sorted(os.listdir("/files")),
        "draws": draw(),
        "started": {
            "argv": sys.argv, "orig_argv": sys.orig_argv, "name": __name__, "file": __file__, "spec": str(__spec__),
            "main": sorted(vars(sys.modules["__main__"])), "directory": os.getcwd(), "path": sys.path,
            "flags": str(sys.flags), "stdin": sys.stdin.read(), "signals": [str(signal.getsignal(n)) for n in range(1, 65)],
            "pid": os.getpid(), "user": os.getuid(), "umask": os.umask(0o22), "threads": len(sys._current_frames()),
            "names": sorted(os.environ), "modules": sorted(sys.modules),
        },
        "command line": open("/proc/self/cmdline").read(), "first environment": open("/proc/self/environ").read(),
    }

server.serve(observe)
"""
OTHERWISE_WHEN_PRIMED = """
import os, sys
primed = "decimal" in sys.modules
import decimal, server, socket

if primed and "FAILS" in os.environ:
    raise SystemExit(5)
if primed:
    other = socket.create_server(("127.0.0.1", 9999))
server.serve(lambda asked: primed)
"""
PROGRAMS = {
    "main.py": "import os\nexec(compile(open(os.environ['PROGRAM']).read(), os.environ['PROGRAM'], 'exec'))",
    "observer.py": OBSERVER,
    "otherwise.py": OTHERWISE_WHEN_PRIMED,
    "arguments.py": (
        "import os, sys, server\n"
        "server.serve(lambda asked: [sys.argv, __name__, os.environ['FOUNDRY_AGENT_SESSION_ID']])\n"
    ),
    "late.py": "import server, slow\nserver.serve(lambda asked: slow.AT)\n",
    "slow.py": "import time\ntime.sleep(1)\nAT = time.monotonic()\n",
    "server.py": SERVER,
    "identity.py": (
        "import os\nID = os.environ['FOUNDRY_AGENT_SESSION_ID']\nGUID = os.getenv('FOUNDRY_AGENT_SESSION_GUID')\n"
    ),
    "stamp.py": "import time\nAT = time.time()\n",
    "drawn.py": "import random\nNUMBER = random.random()\n",
}


@dataclass(frozen=True)
class Reply:
    body: Any
    tier: str
    session: str


class Agents:
    """Agents on a platform that makes one sandbox of each kind ahead. `primed` are those with interpreters made ready."""

    def __init__(self, platform: Platform, http: httpx2.Client, images: Path) -> None:
        self._platform = platform
        self._http = http
        self._images = images
        self._source = images / "source"
        self._source.mkdir()
        for name, content in PROGRAMS.items():
            (self._source / name).write_text(content)
        self._built: dict[tuple[str, ...], str] = {}
        self.primed: set[str] = set()

    def deploy(self, name: str, image: str, **definition: object) -> list[str]:
        """Deploy an agent that asks for priming; gives what its event log says about that."""
        wanted = {"protocol_versions": PROTOCOLS, "enable_memory_snapshot": True, **definition}
        version = self._platform.deploy(name, image, **wanted)
        assert version["status"] == "active", version
        events = self._http.get(f"/agents/{name}/versions/1/events").json()["data"]
        told = [event["message"] for event in events if event["step"] == "prime"]
        if any("modules ahead" in line for line in told):
            self.primed.add(name)
        return told

    def image(self, command: tuple[str, ...] = COMMAND) -> str:
        """An image with all programs, which runs `command`."""
        name = f"programs{len(self._built)}"
        if command not in self._built:
            build(self._source, self._images / name, "1", command=command)
            self._built[command] = f"oci:{self._images / name}:1"
        return self._built[command]

    def until_ahead(self, primed: int | None = None) -> None:
        """Wait until so many interpreters are ready: as many as there are agents that can have one."""
        wanted = len(self.primed) if primed is None else primed
        end = time.monotonic() + READY_DEADLINE
        while time.monotonic() < end:
            text = self._http.get(str(self._http.base_url.copy_with(path="/metrics"))).text
            found = re.search(r'cupola_sandboxes\{status="primed_ahead"\} ([0-9.]+)', text)
            if found is not None and float(found[1]) == wanted:
                return
            time.sleep(0.02)
        raise AssertionError(f"there were never {wanted} primed sandboxes")

    def ask(self, name: str, session: str, body: object = None) -> Reply:
        path = f"/agents/{name}/endpoint/protocols/invocations?agent_session_id={session}"
        answer = self._http.post(path, json=body or {})
        assert answer.status_code == 200, answer.text
        (tier,) = re.findall(r'tier;desc="(\w+)"', answer.headers["server-timing"])
        return Reply(answer.json(), tier, answer.headers["x-agent-session-id"])

    def ask_primed(self, name: str, session: str, body: object = None) -> Any:
        self.until_ahead()
        reply = self.ask(name, session, body)
        assert reply.tier == "primed"
        return reply.body

    def stop(self, name: str, session: str) -> None:
        self._http.post(f"/agents/{name}/endpoint/sessions/{session}:stop").raise_for_status()

    def log(self, name: str, session: str) -> str:
        return self._platform.run("logs", name, session).stdout


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory, platform: Platform) -> Iterator[Agents]:
    with platform.http() as http:
        yield Agents(platform, http, tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    folder = tmp_path_factory.mktemp("platform")
    running = Platform(folder / "data", {"CUPOLA_STARTUP_TIMEOUT": "20", "CUPOLA_POOL_SIZE": "1"}).start()
    yield running
    assert running.stop() == 0
    assert traces(running.data) == []


@pytest.fixture(scope="module")
def observer(agents: Agents) -> str:
    variables = {"GREETING": "hi", "SECRET": "s3cret=\n'\" ünï"}
    image = agents.image(("python3", "observer.py"))
    (line,) = agents.deploy("observer", image, environment_variables=variables)
    assert re.fullmatch(
        r"An interpreter imports \d+ modules ahead, \d+ not; the agent was then ready after \d+ ms\.", line
    )
    agents.deploy("cold", image, environment_variables=variables, enable_memory_snapshot=False)
    return "observer"


def test_two_primed_sessions_are_each_their_own(agents: Agents, observer: str) -> None:
    before = time.time()
    seen = {session: agents.ask_primed(observer, session) for session in ("session-one", "session-two")}
    for session, facts in seen.items():
        environment = facts["environment"]
        guid = environment["FOUNDRY_AGENT_SESSION_GUID"]
        assert environment["FOUNDRY_AGENT_SESSION_ID"] == session
        assert re.fullmatch("[0-9a-zA-Z]{32}", guid)
        assert (facts["imported id"], facts["imported guid"]) == (session, guid)
        assert {f"FOUNDRY_AGENT_SESSION_ID={session}", f"FOUNDRY_AGENT_SESSION_GUID={guid}"} <= set(facts["inherited"])
        assert (environment["GREETING"], environment["SECRET"]) == ("hi", "s3cret=\n'\" ünï")
        assert (environment["FOUNDRY_AGENT_NAME"], environment["HOME"]) == (observer, "/home/session")
        assert facts["hostname"] == ["agent", "agent"]
        assert before < facts["stamp"] <= facts["clock"] <= time.time()
        assert facts["log start"] <= 1000 * (time.time() - before)
        assert (facts["home"], facts["files"]) == ([], [])
    one, two = seen.values()
    assert one["imported guid"] != two["imported guid"]
    assert {name for name, drawn in one["draws"].items() if drawn == two["draws"][name]} == set()


def test_nothing_looks_different_from_a_cold_start(agents: Agents, observer: str) -> None:
    primed = agents.ask_primed(observer, "session-looks")
    cold = agents.ask("cold", "session-looks")
    assert cold.tier == "cold"
    assert primed["started"] == cold.body["started"]
    own = {"FOUNDRY_AGENT_NAME", "FOUNDRY_AGENT_ID", "FOUNDRY_AGENT_SESSION_GUID", "FOUNDRY_AGENT_INSTANCE_CLIENT_ID",
           "FOUNDRY_AGENT_BLUEPRINT_CLIENT_ID"}  # fmt: skip
    environments = [
        {name: value for name, value in facts["environment"].items() if name not in own}
        for facts in (primed, cold.body)
    ]
    assert environments[0] == environments[1]


def test_what_the_kernel_shows_is_that_of_the_waiting_interpreter(agents: Agents, observer: str) -> None:
    facts = agents.ask_primed(observer, "session-kernel")
    assert facts["command line"].split("\0")[:2] == ["python3", "-c"]
    assert "GREETING=hi" in facts["first environment"].split("\0")
    assert "FOUNDRY_AGENT_SESSION" not in facts["first environment"]


def test_a_stored_session_wakes_in_a_primed_sandbox_with_its_files(agents: Agents, observer: str) -> None:
    first = agents.ask_primed(observer, "session-stored", {"write": "note"})
    agents.stop(observer, "session-stored")
    assert agents.ask_primed(observer, "session-neighbour")["home"] == []
    second = agents.ask_primed(observer, "session-stored")
    assert second["home"] == ["note"]
    assert second["imported guid"] == first["imported guid"]
    assert second["draws"]["at import"] != first["draws"]["at import"]


def test_packages_in_the_files_of_a_session_let_it_start_cold(agents: Agents, observer: str) -> None:
    agents.ask_primed(observer, "session-packages", {"package": True})
    agents.stop(observer, "session-packages")
    agents.until_ahead()
    reply = agents.ask(observer, "session-packages")
    assert reply.tier == "cold"
    assert reply.body["imported id"] == "session-packages"
    assert reply.body["started"]["argv"] == ["observer.py"]
    assert "What was imported ahead could not be used, so it starts cold. /home/session/.local/lib/" in agents.log(
        observer, "session-packages"
    )


def test_a_session_does_not_wait_for_imports_that_were_done_ahead(agents: Agents) -> None:
    agents.deploy("slow", agents.image(), environment_variables={"PROGRAM": "late.py"})
    agents.until_ahead()
    asked_at = time.monotonic()
    assert agents.ask_primed("slow", "session-new") < asked_at


def test_modules_run_in_primed_sandboxes(agents: Agents) -> None:
    agents.deploy("module", agents.image(("python3", "-um", "arguments", "a b")))
    assert agents.ask_primed("module", "session-new") == [["/app/arguments.py", "a b"], "__main__", "session-new"]


def test_a_shell_entry_point_starts_cold_and_the_event_log_says_so(agents: Agents) -> None:
    (line,) = agents.deploy("shell", agents.image(("sh", "-c", "exec python3 arguments.py")))
    assert line.startswith("Sessions of this version start cold: The entry point runs sh, which is not Python.")
    reply = agents.ask("shell", "session-new")
    assert (reply.tier, reply.body) == ("cold", [["arguments.py"], "__main__", "session-new"])


@pytest.mark.parametrize(
    ("name", "variables", "reason"),
    [
        ("ports", {}, ": with an interpreter made ready it listens on other ports than after a cold start."),
        ("fails", {"FAILS": "1"}, ", as the trial failed: The container exited with code 5 before it was ready."),
    ],
)
def test_an_agent_that_priming_changes_starts_cold_and_the_event_log_says_so(
    name: str, variables: dict[str, str], reason: str, agents: Agents
) -> None:
    (line,) = agents.deploy(name, agents.image(), environment_variables={"PROGRAM": "otherwise.py", **variables})
    assert line == f"Sessions of this version start cold{reason}"
    reply = agents.ask(name, "session-new")
    assert (reply.tier, reply.body) == ("cold", False)


def test_the_official_container_library_is_primed(agents: Agents, platform: Platform, official_image: str) -> None:
    (line,) = agents.deploy("official", official_image)
    assert int(line.split()[3]) > 300
    path = "/agents/official/endpoint/protocols/openai/responses"
    with platform.http() as http:
        for session in ("session-one", "session-two"):
            agents.until_ahead()
            answer = http.post(path, json={"input": session, "model": "any", "agent_session_id": session})
            assert answer.json()["output"][0]["content"][0]["text"] == f"Official: {session}", answer.text
            assert answer.headers["server-timing"].startswith('tier;desc="primed"')


def test_a_new_egress_policy_removes_what_was_made_ahead(agents: Agents, observer: str, platform: Platform) -> None:
    agents.until_ahead()
    with platform.http() as http:
        http.put("/egress", json={"mode": "none"}).raise_for_status()
    agents.until_ahead(primed=0)
    agents.ask(observer, "session-after")
    agents.until_ahead(primed=1)
