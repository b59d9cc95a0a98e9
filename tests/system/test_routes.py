"""Every route of an agent through the platform, with the samples: by the official clients, and by plain requests."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from scripts.build_sample import build
from tests.system.platform import Platform

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
PROTOCOLS = [{"protocol": name, "version": "2.0.0"} for name in ("responses", "invocations", "invocations_ws")]
JOBS = """
import asyncio
from cupola_agent import Agent, CallContext, Request, Response
agent = Agent(openapi={"openapi": "3.1.0", "info": {"title": "jobs", "version": "1"}, "paths": {}})
jobs = {}

@agent.invocations
async def invoke(request: Request, context: CallContext) -> Response:
    jobs[context.invocation_id] = "running"
    return Response("", status=202)

@agent.get_invocation
async def look(request: Request, context: CallContext):
    return {"id": context.invocation_id, "status": jobs.get(context.invocation_id)}

@agent.cancel_invocation
async def cancel(request: Request, context: CallContext):
    jobs[context.invocation_id] = "cancelled"
    return {"id": context.invocation_id, "status": "cancelled"}

agent.run()
"""
MIRROR = """
from cupola_agent import Agent, WebSocket
agent = Agent()

@agent.websocket
async def mirror(socket: WebSocket) -> None:
    async for message in socket:
        await socket.send(message)

agent.run()
"""


@pytest.fixture(scope="module")
def sample(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Deploys a sample once; returns the name of its agent."""
    images = tmp_path_factory.mktemp("samples")
    deployed: set[str] = set()

    def deploy(name: str) -> str:
        if name not in deployed:
            build(ROOT / "samples" / name, images / name, "1")
            variables = {"PAUSE": "0.05"}
            version = platform.deploy(
                name, f"oci:{images / name}:1", protocol_versions=PROTOCOLS, environment_variables=variables
            )
            assert version["status"] == "active", version
            deployed.add(name)
        return name

    return deploy


def test_responses_by_id_with_2_10_0(
    platform: Platform, sdk_python: Callable[[str], Path], sample: Callable[[str], str]
) -> None:
    done = subprocess.run(
        [sdk_python("2.10.0"), CLIENTS / "routes_new.py", sample("echo"), sample("background")],
        env=platform.client_variables(), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "created: True",
        "polled: completed ['step 1 of 3', 'step 2 of 3', 'step 3 of 3', 'done']",
        "input: ['3']",
        "deleted: 404",
        "resumed: True response.completed",
        "cancelled: cancelled",
        "at the project: cancelled",
        "chain: ['count: 1', 'count: 2', 'count: 3'] True",
        "conversation: ['count: 1', 'count: 2']",
        "unknown: not_found previous_response_id",
    ]


def plain_client(platform: Platform, agent: str) -> openai.OpenAI:
    host, token = platform.token("https://ai.azure.com")
    base = f"{host}/api/projects/default/agents/{agent}/endpoint/protocols/openai/v1"
    return openai.OpenAI(base_url=base, api_key=token, http_client=httpx2.Client(trust_env=False))


def test_a_plain_client_polls_and_cancels_a_response_in_the_background(
    platform: Platform, sample: Callable[[str], str]
) -> None:
    with plain_client(platform, sample("background")) as client:
        job = client.responses.create(input="2", background=True)
        end = time.monotonic() + 60
        while job.status != "completed" and time.monotonic() < end:
            time.sleep(0.05)
            job = client.responses.retrieve(job.id)
        assert job.output_text == "step 1 of 2\nstep 2 of 2\ndone"
        items = client.responses.input_items.list(job.id)
        assert [item.type for item in items] == ["message"]
        endless = client.responses.create(input="100000", background=True)
        assert client.responses.cancel(endless.id).status == "cancelled"
        client.responses.delete(endless.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(endless.id)


def test_every_tail_of_a_stream_can_be_had_again(platform: Platform, sample: Callable[[str], str]) -> None:
    with plain_client(platform, sample("background")) as client:
        whole = [event.model_dump() for event in client.responses.create(input="3", background=True, stream=True)]
        response = whole[0]["response"]["id"]
        for after in range(len(whole)):
            tail = client.responses.retrieve(response, stream=True, starting_after=after)
            assert [event.model_dump() for event in tail] == whole[after + 1 :]


def test_a_stored_response_wakes_the_session_that_has_it(platform: Platform, sample: Callable[[str], str]) -> None:
    agent = sample("echo")
    with plain_client(platform, agent) as client, platform.http() as http:
        made = client.responses.create(input="kept")
        session = getattr(made, "agent_session_id")  # noqa: B009
        assert http.post(f"/agents/{agent}/endpoint/sessions/{session}:stop").status_code == 204
        assert client.responses.retrieve(made.id).output_text == "Echo: kept"


def test_a_function_call_goes_on_without_a_session_id(platform: Platform, sample: Callable[[str], str]) -> None:
    with plain_client(platform, sample("tools")) as client:
        asked = client.responses.create(input="How is it in Oslo and Rome?")
        outputs = [
            {"type": "function_call_output", "call_id": call.call_id, "output": '{"city": "Oslo", "degrees": 3}'}
            for call in asked.output
            if call.type == "function_call"
        ]
        told = client.responses.create(input=outputs, previous_response_id=asked.id)  # type: ignore[arg-type]
        assert told.output_text.splitlines() == ["It is 3 degrees in Oslo."] * 2


def test_an_invocation_is_looked_up_and_cancelled_by_its_id_alone(
    platform: Platform, agent_image: Callable[[str, str], str]
) -> None:
    version = platform.deploy("jobs", agent_image("jobs", JOBS), protocol_versions=PROTOCOLS)
    assert version["status"] == "active", version
    base = "/agents/jobs/endpoint/protocols/invocations"
    with platform.http() as http:
        invocation = http.post(base, content=b"work").headers["x-agent-invocation-id"]
        assert http.get(f"{base}/{invocation}").json() == {"id": invocation, "status": "running"}
        assert http.post(f"{base}/{invocation}/cancel").json()["status"] == "cancelled"
        assert http.get(f"{base}/{invocation}").json()["status"] == "cancelled"
        assert http.get(f"{base}/docs/openapi.json").json()["info"]["title"] == "jobs"
        assert http.get(f"{base}/00000000-0000-0000-0000-000000000000").status_code == 404


@pytest.mark.parametrize("browser", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_a_game_over_a_websocket(platform: Platform, sample: Callable[[str], str], browser: bool, old: bool) -> None:
    host, token = platform.token("https://ai.azure.com")
    agent = sample("websocket")
    address = (
        f"/agents/endpoint/protocols/invocations_ws?project_name=default&agent_name={agent}"
        if old
        else f"/default/agents/{agent}/endpoint/protocols/invocations_ws?api-version=v1"
    )

    async def play() -> tuple[list[dict[str, object]], str | None]:
        offered = [Subprotocol("cupola.bearer"), Subprotocol(token)] if browser else None
        headers = {} if browser else {"authorization": f"Bearer {token}"}
        url = f"{host.replace('http', 'ws', 1)}/api/projects{address}&highest=1"
        async with connect(
            url, proxy=None, subprotocols=offered, additional_headers=headers, open_timeout=60
        ) as client:
            told = [json.loads(await client.recv())]
            await client.send("1")
            told.append(json.loads(await client.recv()))
            await client.wait_closed()
            return told, client.subprotocol

    (begin, end), chosen = asyncio.run(play())
    assert (begin["from"], begin["to"]) == (1, 1)
    assert str(begin["session"]).startswith("sess_")
    assert end == {"guesses": 1, "won": True}
    assert chosen == ("cupola.bearer" if browser else None)


def test_large_messages_over_tls(platform: Platform, agent_image: Callable[[str, str], str]) -> None:
    version = platform.deploy("mirror", agent_image("socket-mirror", MIRROR), protocol_versions=PROTOCOLS)
    assert version["status"] == "active", version
    variables = platform.client_variables()
    address = variables["FOUNDRY_PROJECT_ENDPOINT"].replace("https", "wss", 1)
    trusted = ssl.create_default_context(cafile=variables["SSL_CERT_FILE"])
    headers = {"authorization": f"Bearer {platform.token('https://ai.azure.com')[1]}"}

    async def mirrored() -> int:
        url = f"{address}/agents/mirror/endpoint/protocols/invocations_ws"
        async with connect(
            url, proxy=None, ssl=trusted, additional_headers=headers, open_timeout=60, max_size=None
        ) as client:
            for size in (0, 1, 125, 126, 65_535, 65_536, 1_000_000, 4_000_000):
                await client.send(b"x" * size)
                assert await client.recv() == b"x" * size
            await client.close(4000)
        return client.close_code or 0

    assert asyncio.run(mirrored()) == 4000


def test_turns_over_a_websocket_with_the_plain_client(platform: Platform, sample: Callable[[str], str]) -> None:
    with plain_client(platform, sample("echo")) as client, client.responses.connect() as connection:
        connection.response.create(input="hello")
        kinds = []
        for event in connection:
            kinds.append(event.type)
            if event.type == "response.completed":
                break
    assert kinds[0] == "response.created"
