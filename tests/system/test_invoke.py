"""Talking to a deployed agent: sessions, files, both protocols, every address, and what a caller gets wrong."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator

import httpx2
import pytest

from tests.system.platform import Platform

BOTH = [{"protocol": "responses", "version": "2.0.0"}, {"protocol": "invocations", "version": "2.0.0"}]
ECHO = "/agents/echo/endpoint/protocols"
REFERENCE = {"name": "echo", "type": "agent_reference"}


@pytest.fixture(scope="module")
def http(platform: Platform, echo_image: str) -> Iterator[httpx2.Client]:
    assert platform.deploy("echo", echo_image, protocol_versions=BOTH)["status"] == "active"
    with platform.http() as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/openai/responses", {"agent": REFERENCE}),
        ("/openai/v1/responses", {"agent_reference": REFERENCE}),
        ("/openai/responses?api-version=2025-11-15-preview", {"agent": {**REFERENCE, "version": "1"}}),
        (f"{ECHO}/openai/responses?api-version=v1", {}),
        (f"{ECHO}/openai/v1/responses", {"agent_reference": REFERENCE}),
    ],
)
def test_every_address_of_the_responses_protocol(http: httpx2.Client, path: str, body: dict[str, object]) -> None:
    answer = http.post(path, json={"input": "hello", **body})
    assert answer.status_code == 200
    response = answer.json()
    assert response["output"][0]["content"][0]["text"] == "Echo: hello"
    assert response["agent_session_id"] == answer.headers["x-agent-session-id"]
    assert answer.headers["x-request-id"]


def test_a_session_keeps_its_sandbox_and_files(http: httpx2.Client) -> None:
    first = http.post(f"{ECHO}/openai/responses", json={"input": "count"})
    session = first.headers["x-agent-session-id"]
    texts = [
        http.post(f"{ECHO}/openai/responses", json={"input": "count", "agent_session_id": session}).json()
        for _ in range(3)
    ]
    assert [text["output"][0]["content"][0]["text"] for text in texts] == ["count: 2", "count: 3", "count: 4"]
    other = http.post(f"{ECHO}/openai/responses", json={"input": "count"})
    assert other.headers["x-agent-session-id"] != session
    assert other.json()["output"][0]["content"][0]["text"] == "count: 1"


def test_a_caller_may_choose_the_session_id(http: httpx2.Client) -> None:
    for expected in ("count: 1", "count: 2"):
        answer = http.post(f"{ECHO}/openai/responses", json={"input": "count", "agent_session_id": "my-own-session"})
        assert answer.headers["x-agent-session-id"] == "my-own-session"
        assert answer.json()["output"][0]["content"][0]["text"] == expected


def test_many_requests_for_a_new_session_share_one_sandbox(http: httpx2.Client) -> None:
    body = {"input": "count", "agent_session_id": "shared-session"}
    answers: list[str] = []

    def ask() -> None:
        answer = http.post(f"{ECHO}/openai/responses", json=body)
        answers.append(f"{answer.status_code}")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["200"] * 8
    assert http.post(f"{ECHO}/openai/responses", json=body).json()["output"][0]["content"][0]["text"] == "count: 9"


def test_a_stream_is_server_sent_events(http: httpx2.Client) -> None:
    with http.stream("POST", f"{ECHO}/openai/responses", json={"input": "a b", "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"a": 1}', "application/json"),
        (bytes(range(256)) * 64, "application/octet-stream"),
        (b"", "text/plain"),
    ],
)
def test_an_invocation_passes_any_body_through(http: httpx2.Client, content: bytes, kind: str) -> None:
    address = f"{ECHO}/invocations?agent_session_id=invoke-session"
    answer = http.post(address, content=content, headers={"content-type": kind})
    assert answer.status_code == 200
    assert answer.content == content
    assert answer.headers["content-type"].startswith(kind)
    assert answer.headers["x-agent-session-id"] == "invoke-session"
    assert answer.headers["x-agent-invocation-id"]


def test_an_invocation_may_be_sent_in_chunks(http: httpx2.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for number in range(200):
            yield b"%d," % number

    answer = http.post(f"{ECHO}/invocations?agent_session_id=invoke-session", content=chunks())
    assert answer.content == b"".join(chunks())


@pytest.mark.parametrize("path", [f"{ECHO}/openai/responses", f"{ECHO}/invocations?agent_session_id=invoke-session"])
def test_a_body_of_50_mb_is_refused_and_the_connection_survives(http: httpx2.Client, path: str) -> None:
    answer = http.post(path, content=b'{"input": "' + b"x" * 50_000_000 + b'"}')
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "payload_too_large"
    assert "max_request_body" in answer.json()["error"]["message"]
    assert http.post(f"{ECHO}/openai/responses", json={"input": "still here"}).status_code == 200


def test_a_large_body_below_the_limit_comes_back_whole(http: httpx2.Client) -> None:
    content = bytes(range(256)) * 80_000
    answer = http.post(f"{ECHO}/invocations?agent_session_id=invoke-session", content=content)
    assert answer.content == content


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/openai/v1/responses", {"input": "x"}, 400, "names no agent"),
        ("/openai/v1/responses", {"agent_reference": {"name": "echo"}}, 400, "agent_reference.type"),
        ("/openai/v1/responses", {"agent_reference": {**REFERENCE, "name": "nobody"}}, 404, "nobody"),
        ("/openai/v1/responses", {"agent_reference": {**REFERENCE, "version": "99"}}, 404, "99"),
        (
            f"{ECHO}/openai/responses",
            {"agent_reference": {**REFERENCE, "name": "other"}},
            400,
            "the path is of agent echo",
        ),
        (f"{ECHO}/openai/responses", {"agent_session_id": "a/b"}, 400, "agent_session_id"),
        (f"{ECHO}/openai/responses", {"agent_session_id": 7}, 400, "agent_session_id"),
        (f"{ECHO}/openai/responses", [], 400, "Expected `object`"),
        ("/agents/nobody/endpoint/protocols/invocations", {}, 404, "nobody"),
    ],
)
def test_what_a_caller_gets_wrong_is_named(
    http: httpx2.Client, path: str, body: object, status: int, text: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status
    assert text in answer.json()["error"]["message"]
    assert answer.json()["error"]["additionalInfo"]["request_id"] == answer.headers["x-request-id"]


def test_a_protocol_that_is_not_declared_is_refused(platform: Platform, http: httpx2.Client, echo_image: str) -> None:
    platform.deploy("quiet", echo_image)
    answer = http.post("/agents/quiet/endpoint/protocols/invocations", content=b"x")
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "ProtocolVersionNotSupported"


def test_the_agent_sees_no_credentials_of_the_caller(
    platform: Platform, http: httpx2.Client, agent_image: Callable[[str, str], str]
) -> None:
    image = agent_image(
        "mirror",
        """
import json, os
from cupola_agent import Agent, Request
agent = Agent()

@agent.invocations
def invoke(request: Request):
    return {"headers": dict(request.headers), "environment": dict(os.environ)}

agent.run()
""",
    )
    variables = {"GREETING": "hi", "HOME": "/elsewhere"}
    version = platform.deploy("mirror", image, protocol_versions=BOTH, environment_variables=variables)
    assert version["status"] == "active", version
    spoofed = {
        "x-agent-user-id": "admin",
        "cookie": "a=b",
        "x-forwarded-for": "1.2.3.4",
        "x-client-tag": "kept",
    }
    answer = http.post("/agents/mirror/endpoint/protocols/invocations", content=b"", headers=spoofed)
    seen = answer.json()
    assert not seen["headers"].keys() & {"authorization", "cookie", "x-forwarded-for"}
    assert seen["headers"]["x-agent-user-id"] not in ("", "admin"), "the platform says who the user is"
    assert seen["headers"]["x-client-tag"] == "kept"
    environment = seen["environment"]
    assert environment["GREETING"] == "hi"
    assert environment["HOME"] == "/home/session"
    assert environment["PORT"] == "8088"
    assert environment["FOUNDRY_AGENT_NAME"] == "mirror"
    assert environment["FOUNDRY_AGENT_VERSION"] == "1"
    assert environment["FOUNDRY_AGENT_SESSION_ID"] == answer.headers["x-agent-session-id"]
    assert len(environment["FOUNDRY_AGENT_SESSION_GUID"]) == 32
    assert environment["FOUNDRY_PROJECT_ENDPOINT"].startswith("https://localhost:")


def test_logs_show_what_the_container_printed(platform: Platform, http: httpx2.Client) -> None:
    session = http.post(f"{ECHO}/openai/responses", json={"input": "x"}).headers["x-agent-session-id"]
    shown = platform.run("logs", "echo", session)
    assert shown.returncode == 0
    assert "INFO cupola_agent" in shown.stdout
    assert "The sandbox is ready" in shown.stdout
    with http.stream("GET", f"/agents/echo/versions/1/sessions/{session}:logstream?follow=false") as answer:
        lines = list(answer.iter_lines())
    assert lines[0] == "event: log"
    assert set(json.loads(lines[1].removeprefix("data: "))) == {"timestamp", "stream", "message"}


@pytest.mark.parametrize(
    ("header", "text"),
    [
        (None, "no token"),
        ("Bearer x", "not issued"),
        ("Bearer abc.def.ghi", "not issued"),
        ("Basic dXNlcjpwdw==", "Bearer"),
    ],
)
def test_every_route_needs_a_token(platform: Platform, header: str | None, text: str) -> None:
    base = platform.client_variables()["IDENTITY_ENDPOINT"].removesuffix("/msi/token")
    with httpx2.Client(base_url=base, trust_env=False) as anonymous:
        for method, path in (("GET", "/api/projects/default/agents"), ("POST", "/api/projects/default/openai/responses"),
                             ("GET", "/api/projects/nothing"), ("GET", "/unknown")):  # fmt: skip
            answer = anonymous.request(method, path, headers={"authorization": header} if header else {})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "Unauthorized"
            assert text in answer.json()["error"]["message"]
        assert anonymous.get("/healthz").json() == {"status": "healthy"}


def test_a_token_for_another_audience_is_refused(platform: Platform) -> None:
    base, token = platform.token("https://cognitiveservices.azure.com")
    with httpx2.Client(trust_env=False) as client:
        answer = client.get(f"{base}/api/projects/default/agents", headers={"authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert "https://ai.azure.com" in answer.json()["error"]["message"]


def test_https_is_trusted_with_the_bundle_alone(platform: Platform) -> None:
    variables = platform.client_variables()
    url = variables["FOUNDRY_PROJECT_ENDPOINT"].partition("/api/")[0] + "/healthz"
    trusted = ssl.create_default_context(cafile=variables["SSL_CERT_FILE"])
    trusted.verify_flags |= ssl.VERIFY_X509_STRICT
    with httpx2.Client(trust_env=False, verify=trusted) as client:
        assert client.get(url).json() == {"status": "healthy"}
    with httpx2.Client(trust_env=False) as untrusting, pytest.raises(httpx2.ConnectError):
        untrusting.get(url)
