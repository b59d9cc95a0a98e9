"""The agent as a process of its own: signals, ports, logs, the official client, the sample."""

import http.client
import json
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import openai
import pytest

SAMPLE = (Path(__file__).parents[2] / "samples" / "echo" / "main.py").read_text()

SLOW = """
import asyncio, time
from cupola_agent import Agent
agent = Agent()

@agent.responses
async def reply(input):
    print("begun")
    yield "begun"
    await asyncio.sleep(float(input))
    yield " and done"

@agent.invocations
def block():
    time.sleep(60)
"""

StartAgent = Callable[..., Any]


def post(port: int, path: str, body: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    return connection


def wait_for_line(stream: Any, text: str) -> None:
    while text not in stream.readline():
        continue


def refused(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_lets_a_stream_in_flight_end_and_exits_with_0(start_agent: StartAgent, number: signal.Signals) -> None:
    agent = start_agent(SLOW)
    connection = post(agent.port, "/responses", {"input": "0.5", "stream": True})
    with closing(connection), connection.getresponse() as answer:
        assert answer.readline() == b"event: response.created\n"
        agent.process.send_signal(number)
        rest = answer.read().decode()
    assert " and done" in rest
    assert "event: response.completed\n" in rest
    assert agent.process.wait(5) == 0


def test_a_stop_refuses_new_work_and_cuts_after_the_time(start_agent: StartAgent) -> None:
    agent = start_agent(SLOW, AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS="1")
    with (
        closing(post(agent.port, "/invocations", {})),
        closing(post(agent.port, "/responses", {"input": "60", "stream": True})) as connection,
    ):
        connection.getresponse().readline()
        agent.process.terminate()
        while not refused(agent.port):
            time.sleep(0.01)
        assert agent.process.wait(10) == 0


def test_a_stop_is_told_to_those_who_ask_whether_it_is_ready(start_agent: StartAgent) -> None:
    agent = start_agent(SLOW)
    with closing(http.client.HTTPConnection("127.0.0.1", agent.port, timeout=10)) as connection:
        connection.request("GET", "/readiness")
        connection.getresponse().read()
        agent.process.terminate()
        connection.request("GET", "/readiness")
        answer = connection.getresponse()
        while answer.status == 200:
            answer.read()
            connection.request("GET", "/readiness")
            answer = connection.getresponse()
        assert (answer.status, answer.headers["connection"]) == (503, "close")
    assert agent.process.wait(10) == 0


@pytest.mark.parametrize("store", [True, False])
def test_a_stop_lets_a_whole_answer_in_flight_end(start_agent: StartAgent, store: bool) -> None:
    agent = start_agent(SLOW)
    with closing(post(agent.port, "/responses", {"input": "0.5", "store": store})) as connection:
        wait_for_line(agent.process.stdout, "begun")
        agent.process.terminate()
        answer = connection.getresponse()
        body = json.loads(answer.read())
        assert (answer.status, body["status"]) == (200, "completed")
        assert body["output"][0]["content"][0]["text"] == "begun and done"
        assert answer.headers["x-request-id"]
    assert agent.process.wait(10) == 0


def test_a_second_signal_cuts_at_once(start_agent: StartAgent) -> None:
    agent = start_agent(SLOW)
    with closing(post(agent.port, "/responses", {"input": "60", "stream": True})) as connection:
        connection.getresponse().readline()
        agent.process.terminate()
        while not refused(agent.port):
            time.sleep(0.01)
        agent.process.terminate()
        assert agent.process.wait(10) == 0


def test_an_idle_agent_stops_at_once(start_agent: StartAgent) -> None:
    agent = start_agent(SLOW)
    agent.process.terminate()
    assert agent.process.wait(2) == 0


def test_a_port_that_is_taken(start_agent: StartAgent, free_port: int) -> None:
    with closing(socket.create_server(("0.0.0.0", free_port))):
        agent = start_agent(SLOW, ready=False)
        _, errors = agent.process.communicate(timeout=10)
    assert agent.process.returncode == 1
    assert f"cannot listen on 0.0.0.0:{free_port}: Address already in use" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PORT", "70000", "PORT must be an integer from 1 to 65535, not '70000'"),
        ("PORT", "0", "PORT must be an integer from 1 to 65535, not '0'"),
        ("AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS", "soon", "must be a whole number of seconds"),
        ("WS_KEEPALIVE_INTERVAL", "-1", "WS_KEEPALIVE_INTERVAL must be a number of seconds, 0 or more, not '-1'"),
        ("WS_KEEPALIVE_INTERVAL", "inf", "WS_KEEPALIVE_INTERVAL must be a number of seconds, 0 or more, not 'inf'"),
        ("AGENTSERVER_FLUSH_MODE", "never", "must be background, async or sync"),
    ],
)
def test_a_setting_that_makes_no_sense(start_agent: StartAgent, name: str, value: str, message: str) -> None:
    agent = start_agent(SLOW, ready=False, **{name: value})
    _, errors = agent.process.communicate(timeout=10)
    assert agent.process.returncode == 1
    assert message in errors
    assert "Traceback" not in errors


def test_a_module_without_an_agent(start_agent: StartAgent) -> None:
    agent = start_agent("", ready=False)
    _, errors = agent.process.communicate(timeout=10)
    assert agent.process.returncode == 1
    assert errors == "cupola-agent: 'main' has no agent or ASGI app named 'agent'\n"


def test_hosted_log_lines_are_json_and_prints_come_at_once(start_agent: StartAgent) -> None:
    source = "from cupola_agent import Agent\nagent = Agent()\nagent.responses(lambda: print('printed'))\n"
    agent = start_agent(source, FOUNDRY_HOSTING_ENVIRONMENT="cupola")
    with closing(post(agent.port, "/responses?key=secret", {"input": "private"})) as connection:
        assert connection.getresponse().status == 200
    assert agent.process.stdout.readline() == "printed\n"
    agent.process.terminate()
    _, errors = agent.process.communicate(timeout=10)
    lines = [json.loads(line) for line in errors.splitlines()]
    [line] = [line for line in lines if line["message"].startswith("POST /responses 200")]
    assert line["response_id"].startswith("caresp_")
    assert line["request_id"]
    assert "secret" not in errors
    assert "private" not in errors


def test_the_official_client(start_agent: StartAgent) -> None:
    agent = start_agent(SAMPLE)
    with openai.OpenAI(base_url=agent.url, api_key="x", max_retries=0) as client:
        plain = client.responses.create(model="m", input="hello you")
        assert (plain.output_text, plain.status) == ("Echo: hello you", "completed")

        events = list(client.responses.create(model="m", input="hello you", stream=True))
        assert events[0].type == "response.created"
        assert [event.delta for event in events if event.type == "response.output_text.delta"] == [
            "Echo:", " hello", " you",
        ]  # fmt: skip

        with client.responses.stream(model="m", input="hello you", previous_response_id=plain.id) as stream:
            final = [event.type for event in stream][-1], stream.get_final_response()
        assert final[0] == "response.completed"
        assert final[1].output_text == "Echo: hello you"
        assert final[1].previous_response_id == plain.id

        assert client.responses.retrieve(plain.id).output_text == plain.output_text
        client.responses.delete(plain.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            client.responses.retrieve(plain.id)

        counts = [client.responses.create(input="count").output_text for _ in range(2)]
        assert counts == ["count: 1", "count: 2"]


def test_the_sample_echoes_an_invocation(start_agent: StartAgent) -> None:
    agent = start_agent(SAMPLE)
    with closing(http.client.HTTPConnection("127.0.0.1", agent.port)) as connection:
        connection.request("POST", "/invocations", b"\x00\xff", {"content-type": "image/x"})
        answer = connection.getresponse()
        assert (answer.read(), answer.headers["content-type"]) == (b"\x00\xff", "image/x")
