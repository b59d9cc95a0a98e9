"""The samples of the adapters, against the model stub. `make frameworks` runs this."""

import pytest

from agent.tests.samples.conftest import StartSample
from samples.model_stub import ModelStub

SAMPLES = {
    "agent_framework_agent": "agent_framework",
    "langgraph_agent": "langgraph",
    "openai_agents_agent": "agents",
    "pydantic_ai_agent": "pydantic_ai",
}


@pytest.mark.parametrize("name", SAMPLES)
def test_an_agent_of_a_framework_calls_its_tool(start_sample: StartSample, model: ModelStub, name: str) -> None:
    pytest.importorskip(SAMPLES[name], reason="run by `make frameworks`")
    sample = start_sample(name, OPENAI_BASE_URL=model.url, OPENAI_API_KEY="none", MODEL="stub")
    response = sample.client.responses.create(model="sample", input="get_weather Paris")
    assert [item.type for item in response.output] == ["function_call", "function_call_output", "message"]
    assert response.output_text == "The tool says: It is sunny in Paris."
    assert sample.say("first", previous_response_id=response.id) == "get_weather Paris"
    assert {body["model"] for _, body in model.requests} == {"stub"}
