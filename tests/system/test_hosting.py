"""An image on the official container library from PyPI, unmodified, that keeps what it has with the platform."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from scripts.build_sample import build
from tests.system.platform import Platform

PATH = "/agents/official/endpoint/protocols/openai/responses"
AGENT = """
import os, pathlib

from azure.ai.agentserver.core.storage import FoundryStateStore
from azure.ai.agentserver.responses import ResponsesAgentServerHost, ResponsesServerOptions, TextResponse

app = ResponsesAgentServerHost(options=ResponsesServerOptions(resilient_background=True))
home = pathlib.Path(os.environ["HOME"])


def texts(item):
    content = item.get("content") or []
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]


async def die_once(context):
    died = home / "died"
    if not died.exists():
        died.touch()
        os._exit(137)
    return f"recovered={context.is_recovery}"


async def count():
    async with await FoundryStateStore.get_or_create("counter", user_isolation=True) as store:
        item = await store.get_item("n")
        number = 1 + (0 if item is None else item.value["n"])
        await store.set_item("n", {"n": number})
        return number


@app.response_handler
async def handler(request, context, cancellation_signal):
    said = await context.get_input_text()
    if said == "die":
        return TextResponse(context, request, text=lambda: die_once(context))
    if said == "count":
        return TextResponse(context, request, text=str(await count()))
    history = [text for item in await context.get_history() for text in texts(item)]
    return TextResponse(context, request, text=" | ".join([*history, said]))


app.run()
"""


LIBRARY_AGENT = """
from cupola_agent import Agent
from cupola_agent.state import StateStore

agent = Agent()


def texts(item):
    content = item.get("content") or []
    return [content] if isinstance(content, str) else [part.get("text", "") for part in content]


@agent.responses
async def reply(input, history):
    if input == "count":
        store = StateStore("counter", user_isolation=True)
        number = 1 + ((await store.get("n")) or {"n": 0})["n"]
        await store.put("n", {"n": number})
        return str(number)
    return " | ".join([*(text for item in history for text in texts(item)), input])


if __name__ == "__main__":
    agent.run()
"""


@pytest.fixture(scope="module")
def image(images: Path) -> str:
    source = images / "hosted-source"
    source.mkdir()
    (source / "main.py").write_text(AGENT)
    build(source, images / "hosted", "1", requirements=["azure-ai-agentserver-responses==2.3.0"])
    return f"oci:{images / 'hosted'}:1"


@pytest.fixture
def http(start_platform: Callable[..., Platform], image: str) -> Iterator[httpx2.Client]:
    platform = start_platform(CUPOLA_HOSTING="true")
    version = platform.deploy("official", image)
    assert version["status"] == "active", version
    with platform.http() as http:
        yield http


DEADLINE = 60.0


def ask(http: httpx2.Client, text: str, **fields: Any) -> dict[str, Any]:
    answer = http.post(PATH, json={"input": text, "model": "any", **fields})
    assert answer.status_code == 200, answer.text
    response: dict[str, Any] = answer.json()
    return response


def said(response: dict[str, Any]) -> str:
    text: str = response["output"][0]["content"][0]["text"]
    return text


def test_the_history_of_an_official_container_is_kept_by_the_platform(http: httpx2.Client) -> None:
    first = ask(http, "one")
    second = ask(http, "two", previous_response_id=first["id"], agent_session_id="another-session")
    assert said(second) == "one | one | two"
    assert second["agent_session_id"] != first["agent_session_id"]
    third = ask(http, "three", previous_response_id=second["id"], agent_session_id=first["agent_session_id"])
    assert said(third) == "one | one | two | one | one | two | three"
    missing = http.post(PATH, json={"input": "x", "model": "any", "previous_response_id": "caresp_" + "0" * 50})
    assert missing.status_code == 404
    in_conversation = [ask(http, text, conversation="conv_1") for text in ("a", "b")]
    assert [said(response) for response in in_conversation] == ["a", "a | a | b"]


@pytest.mark.parametrize("kind", ["official, primed", "cupola-agent"])
def test_other_starts_and_another_library_do_the_same(
    start_platform: Callable[..., Platform], agent_image: Callable[[str, str], str], image: str, kind: str
) -> None:
    platform = start_platform(CUPOLA_HOSTING="true", CUPOLA_POOL_SIZE="1")
    primed = kind == "official, primed"
    version = platform.deploy(
        "official", image if primed else agent_image("library", LIBRARY_AGENT), enable_memory_snapshot=primed
    )
    assert version["status"] == "active", version
    with platform.http() as http:
        first = ask(http, "one")
        body = {"input": "two", "model": "any", "previous_response_id": first["id"]}
        end = time.monotonic() + DEADLINE
        for number in itertools.count():
            second = http.post(PATH, json={**body, "agent_session_id": f"another-session-{number}"})
            assert said(second.json()) == "one | one | two"
            if not primed or 'desc="primed"' in second.headers["server-timing"]:
                break
            assert time.monotonic() < end, second.headers["server-timing"]
            time.sleep(0.2)
        assert [said(ask(http, "count")) for _ in range(2)] == ["1", "2"]


def test_the_state_of_an_official_container_is_kept_by_the_platform(http: httpx2.Client) -> None:
    assert [said(ask(http, "count")) for _ in range(3)] == ["1", "2", "3"]
    other = http.post(PATH, json={"input": "count", "model": "any"}, headers={"x-ms-user-identity": "somebody"})
    assert said(other.json()) == "1"


def test_a_stream_of_an_official_container_is_kept_by_the_platform(http: httpx2.Client) -> None:
    with http.stream("POST", PATH, json={"input": "one", "model": "any", "stream": True}) as answer:
        lines = list(answer.iter_lines())
    assert "event: response.completed" in lines
    completed = json.loads(lines[lines.index("event: response.completed") + 1].removeprefix("data: "))
    assert said(ask(http, "two", previous_response_id=completed["response"]["id"])) == "one | one | two"


def test_an_official_container_takes_up_again_what_it_was_killed_at(http: httpx2.Client) -> None:
    begun = ask(http, "die", background=True)
    assert begun["status"] == "in_progress"
    end = time.monotonic() + DEADLINE
    while "recovered=True" not in said(latest := follow(http, begun)):
        assert time.monotonic() < end, latest
        time.sleep(0.1)


def follow(http: httpx2.Client, begun: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request that has all of the other response in its history."""
    body = {"input": "so?", "model": "any", "previous_response_id": begun["id"]}
    while True:
        answer = http.post(PATH, json={**body, "agent_session_id": begun["agent_session_id"]})
        if answer.status_code != 502:
            assert answer.status_code == 200, answer.text
            response: dict[str, Any] = answer.json()
            return response
