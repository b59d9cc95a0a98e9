"""An image built on the official container library from PyPI, unmodified, deploys and answers."""

from __future__ import annotations

from pathlib import Path

from scripts.build_sample import build
from tests.system.platform import Platform

AGENT = """
from azure.ai.agentserver.responses import ResponsesAgentServerHost, TextResponse

app = ResponsesAgentServerHost()


@app.response_handler
async def handler(request, context, cancellation_signal):
    return TextResponse(context, request, text=f"Official: {await context.get_input_text()}")


app.run()
"""


def test_the_official_container_library(platform: Platform, images: Path) -> None:
    source = images / "official-source"
    source.mkdir()
    (source / "main.py").write_text(AGENT)
    build(source, images / "official", "1", requirements=["azure-ai-agentserver-responses==2.3.0"])
    version = platform.deploy("official", f"oci:{images / 'official'}:1")
    assert version["status"] == "active", version
    path = "/agents/official/endpoint/protocols/openai/responses"
    with platform.http() as http:
        plain = http.post(path, json={"input": "hello", "model": "any"})
        assert plain.status_code == 200, plain.text
        assert plain.json()["output"][0]["content"][0]["text"] == "Official: hello"
        assert plain.json()["agent_session_id"] == plain.headers["x-agent-session-id"]
        session = plain.headers["x-agent-session-id"]
        with http.stream("POST", path, json={"input": "x", "stream": True, "agent_session_id": session}) as answer:
            assert answer.headers["x-agent-session-id"] == session
            lines = list(answer.iter_lines())
    assert "event: response.completed" in lines
