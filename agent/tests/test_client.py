"""`client()`: the official client, with the platform's token and the header of the call it is used in."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from cupola_agent import Agent
from cupola_agent.client import client, make_client
from cupola_agent.stores.memory import MemoryResponseStore
from cupola_agent.testing import TestClient

from agent.tests.fake_platform import Answer, FakePlatform, Fault, running_platform
from samples import model_stub


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[FakePlatform]:
    async with running_platform(tmp_path) as platform:
        answer = Answer(200, model_stub.response({"input": "hi", "model": "m"}))
        platform.faults.append(Fault("/openai/v1/responses", answer, times=99))
        yield platform


async def test_a_call_carries_the_platforms_token_and_the_id_of_the_handlers_call(platform: FakePlatform) -> None:
    models = make_client(platform.variables)
    agent = Agent(environ={}, store=MemoryResponseStore)

    @agent.responses
    async def reply(input: str) -> str:  # noqa: A002
        await asyncio.sleep(0)
        return (await models.responses.create(model="m", input=input)).output_text

    async with models, TestClient(agent) as callers:

        async def ask(call_id: str) -> str:
            headers = {"x-agent-foundry-call-id": call_id} if call_id else {}
            answer = await callers.post("/responses", json={"input": "hi"}, headers=headers)
            text: str = answer.json()["output"][0]["content"][0]["text"]
            return text

        assert set(await asyncio.gather(ask("one"), ask("two"), ask(""))) == {"You said: hi"}
    calls = platform.calls("/openai/v1/responses")
    assert {call.headers.get("x-agent-foundry-call-id") for call in calls} == {"one", "two", None}
    assert {call.headers["authorization"] for call in calls} == {"Bearer token-0"}
    assert [call.body["model"] for call in calls] == ["m"] * 3


async def test_a_token_that_was_refused_is_not_used_again(platform: FakePlatform) -> None:
    platform.faults.insert(0, Fault("/openai/v1/responses", Answer(401, {"error": {"message": "no"}})))
    async with make_client(platform.variables) as models:
        with pytest.raises(openai.AuthenticationError):
            await models.responses.create(model="m", input="hi")
        await models.responses.create(model="m", input="hi")
    assert [call.headers["authorization"] for call in platform.calls("/openai")] == ["Bearer token-0", "Bearer token-1"]


async def test_without_a_project_it_is_what_the_openai_variables_say() -> None:
    async with make_client({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": "key"}) as models:
        assert (str(models.base_url), models.api_key) == ("http://127.0.0.1:9/v1/", "key")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "set FOUNDRY_PROJECT_ENDPOINT, or OPENAI_API_KEY"),
        ({"FOUNDRY_PROJECT_ENDPOINT": "http://example.com/api/projects/p"}, "must be https"),
    ],
)
def test_an_environment_without_models_is_told_of(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_client(variables)


async def test_a_process_has_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOUNDRY_PROJECT_ENDPOINT", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    agent = Agent(environ={}, store=MemoryResponseStore)
    given: list[Any] = []
    agent.responses(lambda client: given.append(client))
    async with TestClient(agent) as callers:
        for _ in range(2):
            assert (await callers.post("/responses", json={"input": "hi"})).status == 200
    assert given[0] is given[1] is client()
    await client().close()
    client.cache_clear()


def test_without_the_extra_the_error_names_it() -> None:
    code = "import sys; sys.modules['openai'] = None\nfrom cupola_agent.client import client\nclient()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in run.stderr
    assert "pip install 'cupola-agent[client]'" in run.stderr
