"""Images that do not work: each fails its version with a reason that a person can act on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx2

from cupola.images.build import LayoutWriter
from tests.system.platform import Platform

Make = Callable[[str, str], str]


def error(version: dict[str, object]) -> tuple[str, str]:
    assert version["status"] == "failed", version
    found = version["error"]
    assert isinstance(found, dict)
    return found["code"], found["message"]


def test_an_image_that_does_not_exist(platform: Platform, images: Path, echo_image: str) -> None:
    code, message = error(platform.deploy("missing", f"oci:{images / 'nowhere'}:1"))
    assert code == "InvalidContainerImage"
    assert "nowhere" in message
    code, message = error(platform.deploy("missing-tag", echo_image.replace(":1", ":7")))
    assert code == "InvalidContainerImage"
    assert "7" in message


def test_a_registry_that_cannot_be_reached(platform: Platform) -> None:
    code, message = error(platform.deploy("unreachable", "127.0.0.1:9/agent:1"))
    assert code == "ImagePullBackOff"
    assert "127.0.0.1:9" in message


def test_an_image_for_arm_only(platform: Platform, images: Path) -> None:
    writer = LayoutWriter(images / "arm")
    writer.add_image([writer.add_files({"bin/x": "x"})], tag="1", entrypoint=["/bin/x"], architecture="arm64")
    code, message = error(platform.deploy("arm", f"oci:{images / 'arm'}:1"))
    assert code == "InvalidContainerImage"
    assert "--platform linux/amd64" in message


def test_an_image_with_nothing_to_run(platform: Platform, images: Path) -> None:
    writer = LayoutWriter(images / "empty")
    layer = writer.add_files({"etc/hostname": "x"})
    writer.add_image([layer], tag="1")
    writer.add_image([layer], tag="2", entrypoint=["/bin/nothing"])
    assert "neither ENTRYPOINT nor CMD" in error(platform.deploy("empty", f"oci:{images / 'empty'}:1"))[1]
    assert "cannot be executed" in error(platform.deploy("no-program", f"oci:{images / 'empty'}:2"))[1]


def test_an_image_that_exits_at_once(platform: Platform, agent_image: Make) -> None:
    image = agent_image("exits", "import sys\nprint('config missing: DATABASE')\nsys.exit(7)\n")
    code, message = error(platform.deploy("exits", image))
    assert code == "ContainerNotReady"
    assert "exited with code 7" in message
    assert "config missing: DATABASE" in message
    shown = platform.run("versions", "show", "exits", "1").stdout
    assert "config missing: DATABASE" in shown
    assert "exited with code 7" in shown
    for step in ("resolve", "image", "output", "failed"):
        assert step in shown


def test_an_image_that_listens_on_another_port(platform: Platform, agent_image: Make) -> None:
    image = agent_image("port", "from cupola_agent import Agent\nAgent().run(port=5000)\n")
    code, message = error(platform.deploy("port", image))
    assert code == "ContainerNotReady"
    assert "listens on port 5000" in message
    assert "8088" in message


def test_an_image_that_never_listens(platform: Platform, agent_image: Make) -> None:
    message = error(platform.deploy("deaf", agent_image("deaf", "import time\ntime.sleep(1000)\n")))[1]
    assert "nothing listens on any port" in message
    assert "not ready after 8 s" in message


def test_an_image_without_a_readiness_route(platform: Platform, agent_image: Make) -> None:
    program = """
import http.server
http.server.HTTPServer(("0.0.0.0", 8088), http.server.BaseHTTPRequestHandler).serve_forever()
"""
    message = error(platform.deploy("unready", agent_image("unready", program)))[1]
    assert "GET /readiness answered with status 501" in message


def test_an_image_that_needs_more_memory_than_its_limit(platform: Platform, agent_image: Make) -> None:
    image = agent_image(
        "greedy", "held = bytearray(900 * 1024 * 1024)\nfor i in range(0, len(held), 4096): held[i] = 1\n"
    )
    code, message = error(platform.deploy("greedy", image, memory="512Mi"))
    assert code == "OutOfMemory"
    assert "512Mi" in message


def test_an_image_that_prints_100_mb(platform: Platform, agent_image: Make) -> None:
    program = """
import sys
from cupola_agent import Agent
line = "x" * 1023 + "\\n"
for _ in range(100 * 1024):
    sys.stdout.write(line)
agent = Agent()

@agent.responses
def reply(input: str) -> str:
    return "heard"

agent.run()
"""
    assert platform.deploy("noisy", agent_image("noisy", program))["status"] == "active"
    with platform.http() as http:
        answer = http.post("/agents/noisy/endpoint/protocols/openai/responses", json={"input": "x"})
    assert answer.json()["output"][0]["content"][0]["text"] == "heard"
    # Sandboxes that were made ahead have logs as well.
    for log in (platform.data / "server" / "logs").iterdir():
        assert 0 < sum(path.stat().st_size for path in log.glob("console*.jsonl")) < 9 * 1024 * 1024


def test_an_agent_that_dies_while_it_answers(platform: Platform, agent_image: Make) -> None:
    program = """
import asyncio, os
from cupola_agent import Agent
agent = Agent()

@agent.responses
async def reply(input: str):
    yield "one "
    if input == "die":
        # What was said leaves as soon as the handler waits for something.
        await asyncio.sleep(0.1)
        os._exit(9)
    yield "two"

agent.run()
"""
    assert platform.deploy("fragile", agent_image("fragile", program))["status"] == "active"
    path = "/agents/fragile/endpoint/protocols/openai/responses"
    with platform.http() as http:
        session = http.post(path, json={"input": "live"}).headers["x-agent-session-id"]
        plain = http.post(path, json={"input": "die", "agent_session_id": session})
        assert (plain.status_code, plain.json()["error"]["code"]) == (502, "agent_connection_lost")
        assert plain.headers["x-should-retry"] == "false"
        assert plain.headers["x-agent-session-id"] == session
        with http.stream("POST", path, json={"input": "die", "stream": True, "agent_session_id": session}) as answer:
            events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        assert events[-1]["type"] == "error"
        assert http.post(path, json={"input": "live", "agent_session_id": session}).status_code == 200


def test_an_agent_that_fails_only_later_says_why(platform: Platform, agent_image: Make) -> None:
    program = """
import os, sys
from pathlib import Path
marker = Path("/files/started")
if os.environ.get("FOUNDRY_AGENT_SESSION_ID") == "doomed-session":
    print("no licence for this session", file=sys.stderr)
    sys.exit(3)
from cupola_agent import Agent
Agent().run()
"""
    assert platform.deploy("moody", agent_image("moody", program))["status"] == "active"
    with platform.http() as http:
        answer = http.post(
            "/agents/moody/endpoint/protocols/openai/responses",
            json={"input": "x", "agent_session_id": "doomed-session"},
        )
    assert (answer.status_code, answer.json()["error"]["code"]) == (424, "session_not_ready")
    assert "no licence for this session" in answer.json()["error"]["message"]
    assert answer.headers["x-agent-session-id"] == "doomed-session"


def test_invoking_a_version_that_failed_tells_why(platform: Platform) -> None:
    with platform.http() as http:
        answer = http.post("/agents/exits/endpoint/protocols/openai/responses", json={"input": "x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "agent_version_failed")
    assert "exited with code 7" in answer.json()["error"]["message"]


def test_a_definition_with_every_field_wrong(platform: Platform) -> None:
    definition = {
        "kind": "hosted",
        "image": 7,
        "cpu": "9",
        "memory": "1TB",
        "protocol_versions": [
            {"protocol": "gopher", "version": "v1"},
            {"protocol": "responses", "version": "9"},
            3,
        ],
        "environment_variables": {"1BAD": "x", "FOUNDRY_X": "x", "AGENT_X": "x", "OK": 3},
        "session_configuration": {"idle_timeout_seconds": 5},
        "tools": {},
        "rai_config": [],
    }
    with platform.http() as http:
        answer: httpx2.Response = http.post("/agents/wrong/versions", json={"definition": definition})
    assert answer.status_code == 400
    fields = {detail["target"] for detail in answer.json()["error"]["details"]}
    assert fields == {
        "definition.image",
        "definition.cpu",
        "definition.memory",
        "definition.protocol_versions[0].protocol",
        "definition.protocol_versions[1].version",
        "definition.protocol_versions[2]",
        "definition.environment_variables.1BAD",
        "definition.environment_variables.FOUNDRY_X",
        "definition.environment_variables.AGENT_X",
        "definition.environment_variables.OK",
        "definition.session_configuration.idle_timeout_seconds",
        "definition.tools",
        "definition.rai_config",
    }
    assert all(detail["message"] for detail in answer.json()["error"]["details"])
