"""The page about frameworks shows what runs. `make frameworks` runs this."""

import pytest
from cupola_agent.client import client

from agent.tests.examples import asked, blocks, run
from samples.model_stub import ModelStub

PAGE = "docs/howto/agent-frameworks.md"


@pytest.mark.parametrize(("line", "source"), blocks(PAGE))
async def test_an_example_runs_and_its_agent_answers(
    model: ModelStub, monkeypatch: pytest.MonkeyPatch, tmp_path: object, line: int, source: str
) -> None:
    pytest.importorskip("agents", reason="run by `make frameworks`")
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("AGENTSERVER_STATE_ROOT", str(tmp_path))
    monkeypatch.delenv("FOUNDRY_PROJECT_ENDPOINT", raising=False)
    client.cache_clear()
    response = await asked((await run(PAGE, line, source))["agent"])
    assert response["output"][0]["content"][0]["text"] == "You said: hello"
    await client().close()
    client.cache_clear()
