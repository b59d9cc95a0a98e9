"""Which agent, version and session a request of the Responses protocol is for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.domain.errors import CupolaError
from cupola.gateway.target import Target, responses_target


def reference(**fields: object) -> dict[str, object]:
    return {"type": "agent_reference", "name": "echo", **fields}


def target(body: object, name_in_path: str | None = None) -> Target:
    return responses_target(body if isinstance(body, bytes) else json.dumps(body).encode(), name_in_path)


@pytest.mark.parametrize(
    ("body", "name", "expected"),
    [
        ({"agent_reference": reference()}, None, Target("echo", None, None)),
        ({"agent": reference()}, None, Target("echo", None, None)),
        ({"agent": reference(name="old"), "agent_reference": reference()}, None, Target("echo", None, None)),
        ({"agent_reference": reference()}, "echo", Target("echo", None, None)),
        ({}, "echo", Target("echo", None, None)),
        ({"agent_reference": None, "agent": None}, "echo", Target("echo", None, None)),
        ({"input": "x", "stream": True, "model": "m", "extra": {"a": [1]}}, "echo", Target("echo", None, None)),
        ({"agent_session_id": "session-1"}, "echo", Target("echo", None, "session-1")),
        ({"agent_session_id": None}, "echo", Target("echo", None, None)),
    ],
)
def test_the_agent_and_session_of_a_request(body: dict[str, Any], name: str | None, expected: Target) -> None:
    assert target(body, name) == expected


@pytest.mark.parametrize(
    ("version", "number"),
    [
        ("1", 1),
        (1, 1),
        ("42", 42),
        ("999999999", 999999999),
        (None, None),
        ("", None),
        ("latest", None),
        ("@latest", None),
    ],
)
def test_the_version_of_a_request(version: object, number: int | None) -> None:
    assert target({"agent_reference": reference(version=version)}).number == number


@pytest.mark.parametrize("version", ["v1", "1.0", "-1", -1, "\u0661", "1 ", "9" * 10, "draft-1"])
def test_a_version_that_cannot_be_is_not_found(version: object) -> None:
    with pytest.raises(CupolaError) as caught:
        target({"agent_reference": reference(version=version)})
    assert (caught.value.code, caught.value.status) == ("not_found", 404)
    assert "of agent echo does not exist" in caught.value.message


@pytest.mark.parametrize(
    ("body", "name", "param", "said"),
    [
        ({}, None, "agent_reference", 'add "agent_reference": {"type": "agent_reference", "name": "<agent>"}'),
        ({"agent_reference": {"name": "echo"}}, None, "agent_reference.type", 'expected "agent_reference"'),
        ({"agent": {"name": "echo"}}, None, "agent.type", 'expected "agent_reference"'),
        ({"agent": {"name": "echo", "type": "other"}}, "echo", "agent.type", 'expected "agent_reference"'),
        ({"agent_reference": reference()}, "other", "agent_reference.name", "the path is of agent other"),
        ({"agent": reference()}, "other", "agent.name", "the path is of agent other"),
        ({"agent_reference": {"type": "agent_reference"}}, None, None, "missing required field `name`"),
        ({"agent_reference": "echo"}, None, None, "The body is not as expected"),
        ({"agent_reference": reference(version=True)}, None, None, "The body is not as expected"),
        ({"agent_reference": reference(version=1.5)}, None, None, "The body is not as expected"),
        ({"agent_session_id": 7}, "echo", None, "The body is not as expected"),
        ([], "echo", None, "The body is not as expected"),
        (None, "echo", None, "The body is not as expected"),
        (b"", "echo", None, "The body is not JSON"),
        (b"{", "echo", None, "The body is not JSON"),
        (b"agent=echo", "echo", None, "The body is not JSON"),
        (b'{"model": "\xff"}', "echo", None, "The body is not JSON"),
        (b'{"model": "\\ud800"}', "echo", None, "The body is not JSON"),
        (b'{"input": ' + b"[" * 100_000, "echo", None, "The body is not JSON"),
    ],
)
def test_a_body_that_names_no_agent_rightly_is_refused(
    body: object, name: str | None, param: str | None, said: str
) -> None:
    with pytest.raises(CupolaError) as caught:
        target(body, name)
    assert (caught.value.code, caught.value.status) == ("invalid_request_error", 400)
    assert caught.value.param == param
    assert said in caught.value.message


@pytest.mark.parametrize("session_id", ["", "short", "../../../etc", "x" * 129])
def test_a_session_id_that_cannot_be_is_refused(session_id: str) -> None:
    with pytest.raises(CupolaError) as caught:
        target({"agent_session_id": session_id}, "echo")
    assert (caught.value.code, caught.value.status, caught.value.param) == ("bad_request", 400, "agent_session_id")


@given(st.binary(max_size=60) | st.text(max_size=40).map(lambda text: f'{{"agent": "{text}"}}'.encode()))
def test_arbitrary_bytes_give_a_target_or_a_refusal(body: bytes) -> None:
    try:
        found: Target | CupolaError = target(body, "echo")
    except CupolaError as error:
        found = error
    assert isinstance(found, Target) or found.status in (400, 404)
