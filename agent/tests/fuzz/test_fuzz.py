"""Generated and malformed requests: a short form of `make fuzz`."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from agent.tests.blackbox.process import running
from agent.tests.fuzz import malformed, traffic
from agent.tests.fuzz.run import ECHO
from agent.tests.fuzz.target import SAID_OF_THE_REQUEST, Target, statuses


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """An agent that is looked at before and after: it must come out of all of this as it went in."""
    with running(tmp_path_factory.mktemp("fuzz"), {}, ECHO) as agent:
        warm = Target(agent)
        traffic.run(warm, 100, 1)
        warm.close()
        descriptors, memory = warm.descriptors(), warm.memory()
        sending = Target(agent)
        yield sending
        sending.check_unharmed(descriptors, memory)


def test_generated_requests_are_answered(target: Target) -> None:
    counts = traffic.run(target, 500, 2)
    assert sum(counts.values()) > 300
    # The requests reach what is behind the checks, and the checks.
    assert {200, 400, 404} <= counts.keys()


@pytest.mark.parametrize("name", malformed.REFUSED)
def test_malformed_http_is_refused(target: Target, name: str) -> None:
    answers = statuses(target.send_raw(malformed.REFUSED[name]))
    assert all(400 <= status < 500 or status in SAID_OF_THE_REQUEST for status in answers)
    assert len(answers) <= 1, "a second answer: a request was smuggled"


@pytest.mark.parametrize("name", malformed.CUT_OFF)
def test_a_request_that_is_cut_off_is_not_run(target: Target, name: str) -> None:
    received = target.send_raw(malformed.CUT_OFF[name])
    assert all(400 <= status < 500 for status in statuses(received))


def test_mutated_http_harms_nobody(target: Target) -> None:
    choose = random.Random(3)  # noqa: S311
    for _ in range(300):
        target.send_raw(malformed.mutated(choose))


def test_an_agent_that_is_sent_bytes_slowly_serves_others(target: Target) -> None:
    with socket.create_connection(("127.0.0.1", target.agent.port)) as slow:
        for byte in b"GET /readiness HTTP/1.1\r\n":
            slow.sendall(bytes([byte]))
            assert target.agent.client.get("/readiness").status == 200
