"""Sandboxes with a kernel of their own: gVisor, by the setting `oci_runtime`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import pytest

from tests.system.platform import Platform

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the oci driver needs root"),
    pytest.mark.skipif(shutil.which("runsc") is None, reason="runsc is not installed"),
]

AGENT = """
import os
from cupola_agent import Agent, Request, Response
agent = Agent()

@agent.invocations
async def invoke(request: Request) -> Response:
    with open(os.path.expanduser("~/visits"), "a") as file:
        file.write("x")
    return Response(f"{os.uname().release} {open(file.name).read()}".encode())

agent.run()
"""


def test_an_agent_runs_on_a_kernel_of_its_own(
    start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str]
) -> None:
    platform = start_platform(CUPOLA_OCI_RUNTIME="runsc")
    version = platform.deploy(
        "apart", agent_image("apart", AGENT), protocol_versions=[{"protocol": "invocations", "version": "2.0.0"}]
    )
    assert version["status"] == "active", version
    path = "/agents/apart/endpoint/protocols/invocations"
    with platform.http() as http:
        first = http.post(path, json={})
        session = first.headers["x-agent-session-id"]
        assert http.post(f"/agents/apart/endpoint/sessions/{session}:stop").status_code == 204
        again = http.post(f"{path}?agent_session_id={session}", json={})
    assert first.status_code == again.status_code == 200
    kernel, visits = again.text.split()
    assert kernel != os.uname().release
    assert visits == "xx"
