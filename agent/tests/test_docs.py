"""What the pages for authors of agents show can be run, and does what they say."""

import pytest
from cupola_agent.testing import TestClient

from agent.tests.examples import asked, blocks, run

EXAMPLES = [
    pytest.param(page, line, source, id=f"{page}:{line}")
    for page in ("agent/README.md", "docs/howto/write-an-agent.md", "docs/howto/agent-websocket.md")
    for line, source in blocks(page)
]


@pytest.fixture(autouse=True)
def _models(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("AGENTSERVER_STATE_ROOT", str(tmp_path))


@pytest.mark.parametrize(("page", "line", "source"), EXAMPLES)
async def test_an_example_runs_and_its_agent_answers(page: str, line: int, source: str) -> None:
    agent = (await run(page, line, source))["agent"]
    if "TestClient" in source:
        return  # it has asked its agent itself
    if "agent.invocations" in source:
        test = TestClient(agent)
        answer = await test.post("/invocations", content=b"hello")
        assert answer.status in (200, 202)
        if "agent.get_invocation" in source:
            identifier = answer.headers["x-agent-invocation-id"]
            assert (await test.get(f"/invocations/{identifier}")).json() == {"job": "hello"}
    if "agent.websocket" in source:
        async with TestClient(agent).websocket("/invocations_ws?room=blue") as socket:
            await socket.send("hello")
            assert await socket.receive()
    if "agent.responses" in source:
        response = await asked(agent)
        assert response["status"] == "completed"
        assert response["output"]
