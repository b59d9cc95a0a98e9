"""Identifiers and headers on the way in and out (contract sections 1.5, 3 and 4.2)."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agent.tests.blackbox.conftest import Start
from agent.tests.blackbox.turns import COMPLETED, MODES, SYNC, Mode, asked, ended
from agent.tests.blackbox.wire import Answer, Client, new_id, new_partition, partition_of

SHAPE = re.compile(r"[a-z]+_[0-9a-f]{16}00[A-Za-z0-9]{32}")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
ROUTES = [
    ("GET", "/readiness", None),
    ("GET", "/nowhere", None),
    ("PUT", "/responses", {}),
    ("POST", "/responses", {"input": "say a"}),
    ("POST", "/responses", {"input": "say a", "stream": True}),
    ("POST", "/responses", {"input": 1}),
    ("POST", "/responses", {"input": "raise"}),
    ("GET", "/responses/x", None),
    ("GET", f"/responses/{new_id()}", None),
    ("DELETE", f"/responses/{new_id()}", None),
    ("POST", f"/responses/{new_id()}/cancel", None),
    ("GET", f"/responses/{new_id()}/input_items", None),
]
ROUTE_NAMES = [f"{method} {path.partition('_')[0]} {body or ''}" for method, path, body in ROUTES]


def response_of(answer: Answer, mode: Mode) -> Any:
    assert answer.status == 200, answer
    return answer.events[-1].response if mode.stream else answer.json


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=ROUTE_NAMES)
def test_every_answer_says_who_served_it(client: Client, method: str, path: str, body: Any) -> None:
    answer = client.call(method, path, body)
    assert re.fullmatch(r"(\S+/\S+ \(python/3\.\d+\) ?)+", answer.headers["x-platform-server"])
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=ROUTE_NAMES)
def test_the_callers_request_id_is_sent_back(client: Client, method: str, path: str, body: Any) -> None:
    answer = client.call(method, path, body, {"x-request-id": "my-own.id:7"})
    assert answer.headers["x-request-id"] == "my-own.id:7"


@pytest.mark.parametrize(("method", "path", "body"), ROUTES, ids=ROUTE_NAMES)
def test_the_trace_beats_the_callers_request_id(client: Client, method: str, path: str, body: Any) -> None:
    answer = client.call(method, path, body, {"x-request-id": "mine", "traceparent": TRACEPARENT})
    assert answer.headers["x-request-id"] == TRACE


BAD_TRACES = ["", "x", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"ff-{TRACE}-00f067aa0ba902b7-01", f"00-{TRACE}-01"]


@pytest.mark.parametrize("value", BAD_TRACES)
def test_a_trace_that_is_none_is_ignored(client: Client, value: str) -> None:
    answer = client.call("GET", "/readiness", headers={"x-request-id": "mine", "traceparent": value})
    assert answer.headers["x-request-id"] == "mine"


def test_request_ids_differ(client: Client) -> None:
    assert len({client.get("/readiness").headers["x-request-id"] for _ in range(20)}) == 20


def test_readiness(client: Client) -> None:
    answer = client.get("/readiness")
    assert (answer.status, answer.body) == (200, b'{"status":"healthy"}')
    assert answer.headers["content-type"] == "application/json"


def test_readiness_without_its_body(client: Client) -> None:
    answer = client.call("HEAD", "/readiness")
    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_ids_have_their_shape(client: Client, mode: Mode) -> None:
    answer = client.post("/responses", {"input": "say a; call; reason r", **mode.fields})
    response = response_of(answer, mode)
    assert re.fullmatch(SHAPE, response["id"])
    assert response["id"].startswith("caresp_")
    for item in response["output"]:
        assert re.fullmatch(SHAPE, item["id"])
        assert partition_of(item["id"]) == partition_of(response["id"])
    assert [item["id"].partition("_")[0] for item in response["output"]] == ([] if mode.background and not mode.stream else [
        "msg", "fc", "rs",
    ])  # fmt: skip


def test_every_response_has_a_partition_of_its_own(client: Client) -> None:
    ids = [client.post("/responses", {"input": "say a"}).json["id"] for _ in range(20)]
    assert len({partition_of(response_id) for response_id in ids}) == 20


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_platform_names_the_response_by_header(client: Client, mode: Mode) -> None:
    response_id = new_id()
    answer = client.post("/responses", {"input": "tell response", **mode.fields}, {"x-agent-response-id": response_id})
    assert response_of(answer, mode)["id"] == response_id


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_caller_names_the_response_in_the_body(client: Client, mode: Mode) -> None:
    response_id = new_id()
    answer = client.post("/responses", {"input": "say a", "response_id": response_id, **mode.fields})
    assert response_of(answer, mode)["id"] == response_id


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_header_beats_the_body(client: Client, mode: Mode) -> None:
    first, second = new_id(), new_id()
    body = {"input": "say a", "response_id": second, **mode.fields}
    assert response_of(client.post("/responses", body, {"x-agent-response-id": first}), mode)["id"] == first


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_an_empty_header_names_nothing(client: Client, mode: Mode) -> None:
    answer = client.post("/responses", {"input": "say a", **mode.fields}, {"x-agent-response-id": ""})
    assert re.fullmatch(SHAPE, response_of(answer, mode)["id"])


def test_the_handler_sees_the_id_the_caller_sees(client: Client) -> None:
    with asked(client, SYNC, "tell response") as turn:
        assert turn.final()["output"][0]["content"][0]["text"] == turn.id


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.store], ids=str)
def test_an_id_that_is_taken_is_not_run_again(client: Client, mode: Mode) -> None:
    """The platform may send a request again; what was stored is not overwritten (contract section 9, row 10)."""
    first = ended(client, mode, COMPLETED)
    again = client.post("/responses", {"input": "say other", **mode.fields}, {"x-agent-response-id": first.id})
    assert again.status in (200, 409)
    assert b"other" not in again.body
    assert client.get(first.path).json["output"][0]["content"][0]["text"] == "ab"


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_session_is_told_in_body_and_header(client: Client, mode: Mode) -> None:
    body = {"input": "say a", "agent_session_id": "session-1", **mode.fields}
    answer = client.post("/responses", body)
    assert answer.headers["x-agent-session-id"] == "session-1"
    assert response_of(answer, mode)["agent_session_id"] == "session-1"


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_a_request_without_a_session_gets_one(client: Client, mode: Mode) -> None:
    answer = client.post("/responses?agent_session_id=ignored", {"input": "say a", **mode.fields})
    assert re.fullmatch("[0-9a-f]{63}", answer.headers["x-agent-session-id"])
    assert response_of(answer, mode)["agent_session_id"] == answer.headers["x-agent-session-id"]


def test_a_conversation_has_one_session(client: Client) -> None:
    partition = new_partition()
    sessions = {
        client.post("/responses", {"input": "say a", "conversation": new_id("conv", partition)}).headers[
            "x-agent-session-id"
        ]
        for _ in range(3)
    }
    assert len(sessions) == 1


def test_a_failed_handler_still_tells_the_session(client: Client) -> None:
    answer = client.post("/responses", {"input": "raise", "agent_session_id": "session-1"})
    assert (answer.status, answer.headers["x-agent-session-id"]) == (500, "session-1")


@pytest.mark.parametrize("operation", ["", "/input_items", "?stream=true"])
def test_other_routes_do_not_tell_a_session(client: Client, operation: str) -> None:
    turn = ended(client, SYNC, COMPLETED)
    assert "x-agent-session-id" not in client.get(f"{turn.path}{operation}").headers


def test_the_sandboxs_session_is_told_everywhere(start: Start) -> None:
    client = start(FOUNDRY_AGENT_SESSION_ID="sandbox-1").client
    created = client.post("/responses", {"input": "say a"})
    assert created.headers["x-agent-session-id"] == created.json["agent_session_id"] == "sandbox-1"
    own = client.post("/responses", {"input": "say a", "agent_session_id": "own"})
    assert own.headers["x-agent-session-id"] == "own"
    for path in (f"/responses/{created.json['id']}", f"/responses/{new_id()}", "/responses/x"):
        assert client.get(path).headers["x-agent-session-id"] == "sandbox-1"
    refused = client.post("/responses", b"no JSON")
    assert refused.headers["x-agent-session-id"] == "sandbox-1"


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.stream], ids=str)
def test_a_stream_says_how_it_wants_to_be_passed_on(client: Client, mode: Mode) -> None:
    headers = client.post("/responses", {"input": "say a", **mode.fields}).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert headers["connection"] == "keep-alive"


TOLD = [
    ("header x-client-colour", {"x-client-colour": "blue"}, "blue"),
    ("header x-client-colour", {"X-Client-COLOUR": "blue"}, "blue"),
    ("header x-client-colour", {}, "none"),
    ("header colour", {"colour": "blue"}, "none"),
    ("header authorization", {"authorization": "Bearer x"}, "none"),
    ("user", {"x-agent-user-id": "u-1"}, "u-1"),
    ("user", {}, "nobody"),
    ("call", {"x-agent-foundry-call-id": "c-1"}, "c-1"),
    ("call", {}, "none"),
]


@pytest.mark.parametrize(("question", "headers", "wanted"), TOLD, ids=str)
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_handler_is_told_what_the_platform_sent(
    client: Client, mode: Mode, question: str, headers: dict[str, str], wanted: str
) -> None:
    with asked(client, mode, f"tell {question}", headers) as turn:
        # The response of a user is there for that user only.
        turn.client = client.with_headers(headers)
        assert turn.final()["output"][0]["content"][0]["text"] == wanted


@pytest.mark.parametrize("query", ["colour=blue", "a=1&colour=blue", "colour=bl%75e"])
def test_the_handler_is_told_the_query(client: Client, query: str) -> None:
    answer = client.post(f"/responses?{query}", {"input": "tell query colour"})
    assert answer.json["output"][0]["content"][0]["text"] == "blue"
