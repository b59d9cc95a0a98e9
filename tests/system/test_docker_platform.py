"""The platform on the `docker` driver: deploy, talk, stop; and what a killed server leaves at the engine."""

from __future__ import annotations

import os
from collections.abc import Callable

import httpx2
import pytest

from tests.system.engine import PrivateEngine
from tests.system.platform import Platform

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="images are unpacked by root")
ECHO = "/agents/echo/endpoint/protocols/openai/responses"


def text(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    said: str = answer.json()["output"][0]["content"][0]["text"]
    return said


def test_an_agent_is_deployed_invoked_and_gone_after_a_stop(
    start_platform: Callable[..., Platform], engine: PrivateEngine, echo_image: str
) -> None:
    platform = start_platform(CUPOLA_DRIVER="docker", CUPOLA_DOCKER_SOCKET=str(engine.socket), CUPOLA_POOL_SIZE="0")
    assert platform.deploy("echo", echo_image)["status"] == "active"
    with platform.http() as http:
        first = http.post(ECHO, json={"input": "hello"})
        assert text(first) == "Echo: hello"
        session = {"agent_session_id": first.json()["agent_session_id"]}
        assert text(http.post(ECHO, json={"input": "again", **session})) == "Echo: again"
        with http.stream("POST", ECHO, json={"input": "a b", "stream": True, **session}) as streamed:
            assert "event: response.completed" in list(streamed.iter_lines())
    (container, image) = engine.contents()
    assert container.startswith("/cupola-")
    assert "cupola-" in image
    assert platform.stop() == 0
    assert engine.contents() == []


def test_an_agent_that_does_not_start_is_told_with_its_output(
    start_platform: Callable[..., Platform], engine: PrivateEngine, agent_image: Callable[[str, str], str]
) -> None:
    platform = start_platform(CUPOLA_DRIVER="docker", CUPOLA_DOCKER_SOCKET=str(engine.socket), CUPOLA_POOL_SIZE="0")
    version = platform.deploy("broken", agent_image("broken", "import sys; sys.exit('no key is set')"))
    assert version["status"] == "failed"
    assert "exited with code 1" in str(version["error"])
    assert "no key is set" in str(version["error"])
    assert [name for name in engine.contents() if name.startswith("/")] == []


def test_what_a_killed_server_left_at_the_engine_is_gone_after_the_next_start(
    start_platform: Callable[..., Platform], engine: PrivateEngine, echo_image: str
) -> None:
    # Nothing asks for docker here: it is taken because there is no OCI runtime of that name.
    settings = {
        "CUPOLA_OCI_RUNTIME": "no-such-runtime",
        "CUPOLA_DOCKER_SOCKET": str(engine.socket),
        "CUPOLA_POOL_SIZE": "0",
    }
    platform = start_platform(**settings)
    assert "by the docker driver: oci cannot be used (no no-such-runtime on the PATH)" in platform.log.read_text()
    assert platform.deploy("echo", echo_image)["status"] == "active"
    with platform.http() as http:
        assert text(http.post(ECHO, json={"input": "count", "agent_session_id": "kept-session"})) == "count: 1"
    platform.kill()
    left = [name for name in engine.contents() if name.startswith("/")]
    assert len(left) == 1
    restarted = start_platform(platform.data, **settings)
    assert [name for name in engine.contents() if name.startswith("/")] == []
    with restarted.http() as http:
        assert text(http.post(ECHO, json={"input": "count", "agent_session_id": "kept-session"})) == "count: 2"
    assert restarted.stop() == 0
    assert engine.contents() == []
