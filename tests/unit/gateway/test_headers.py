from __future__ import annotations

import pytest

from cupola.gateway.headers import to_agent, to_caller

REQUEST_ID = (b"x-request-id", b"id-1")


@pytest.mark.parametrize(
    "name",
    [
        "traceparent",
        "tracestate",
        "baggage",
        "x-ms-client-request-id",
        "user-agent",
        "accept",
        "accept-encoding",
        "accept-language",
        "content-type",
        "content-encoding",
        "x-client-version",
    ],
)
def test_headers_that_an_agent_sees(name: str) -> None:
    header = (name.encode(), b"value")
    assert to_agent([header, header], b"id-1", []) == [header, header, REQUEST_ID]


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "proxy-authorization",
        "cookie",
        "host",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "forwarded",
        "x-real-ip",
        "x-agent-session-id",
        "x-agent-user-id",
        "x-platform-token",
        "x-identity-header",
        "x-request-id",
        "x-ms-user",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "expect",
        "te",
        "origin",
        "referer",
        "x-anything",
    ],
)
def test_headers_that_an_agent_does_not_see(name: str) -> None:
    assert to_agent([(name.encode(), b"value")], b"id-1", []) == [REQUEST_ID]


SESSION = (b"x-agent-session-id", b"session-1")
TIMING = (b"server-timing", b"queue;dur=1")


@pytest.mark.parametrize("name", ["content-type", "content-length", "cache-control", "x-own", "retry-after", "etag"])
def test_headers_of_an_agent_that_a_caller_sees(name: str) -> None:
    header = (name.encode(), b"value")
    assert to_caller([header, header], "session-1", "queue;dur=1") == [header, header, SESSION, TIMING]


@pytest.mark.parametrize(
    "name",
    [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "server",
        "date",
        "x-request-id",
        "x-agent-session-id",
        "x-platform-error-detail",
    ],
)
def test_headers_of_an_agent_that_a_caller_does_not_see(name: str) -> None:
    assert to_caller([(name.encode(), b"forged")], "session-1", "queue;dur=1") == [SESSION, TIMING]


def test_an_agent_learns_of_the_user_from_the_platform_alone() -> None:
    spoofed = [(b"x-agent-user-id", b"somebody"), (b"x-agent-foundry-call-id", b"a call of somebody's")]
    told = [(b"x-agent-user-id", b"user"), (b"x-agent-foundry-call-id", b"call")]
    assert to_agent(spoofed, b"id-1", told) == [REQUEST_ID, *told]
