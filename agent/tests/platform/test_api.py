"""How the platform is called: headers, retries, errors (contract sections 3.3 and 4.12)."""

import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from cupola_agent.call import Caller
from cupola_agent.platform.api import Platform
from cupola_agent.platform.client import HttpClient
from cupola_agent.platform.tokens import find_source
from cupola_agent.stores.base import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    PreconditionFailedError,
    RefusedError,
    StoreError,
    UnavailableError,
)
from cupola_agent.stores.platform import PlatformResponseStore

from agent.tests.fake_platform import Answer, FakePlatform, Fault, running_platform

ALICE = Caller("alice", "alice:1", "request-1")
NOBODY = Caller()
RESPONSE: dict[str, Any] = {"id": "r1", "status": "completed", "output": []}


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakePlatform, None]:
    async with running_platform(tmp_path) as running:
        yield running


@pytest.fixture
def pauses() -> list[float]:
    """How long the container waited, instead of waiting."""
    return []


@pytest.fixture
async def store(fake: FakePlatform, pauses: list[float]) -> AsyncGenerator[PlatformResponseStore, None]:
    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    store = PlatformResponseStore(Platform.from_environment(fake.variables, sleep=sleep))
    yield store
    await store.close()


async def test_a_call_says_who_it_is_for_and_who_makes_it(fake: FakePlatform, store: PlatformResponseStore) -> None:
    await store.create(RESPONSE, [], [], ALICE)
    (call,) = fake.calls("/storage/responses")
    assert call.query == {"api-version": "v1"}
    assert call.headers["authorization"] == "Bearer token-0"
    assert call.headers["x-agent-foundry-call-id"] == "alice:1"
    assert re.fullmatch(r"cupola-agent/\S+ \(python/3\.\d+\)", call.headers["user-agent"])
    assert re.fullmatch("[0-9a-f-]{36}", call.headers["x-ms-client-request-id"])
    assert "x-ms-user-id" not in call.headers
    assert "traceparent" not in call.headers


async def test_a_call_without_an_inbound_call_id_has_none(fake: FakePlatform, store: PlatformResponseStore) -> None:
    await store.create(RESPONSE, [], [], NOBODY)
    assert "x-agent-foundry-call-id" not in fake.calls("/storage/responses")[0].headers


async def test_an_open_span_goes_along(fake: FakePlatform, store: PlatformResponseStore) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    with TracerProvider().get_tracer("test").start_as_current_span("turn") as span:
        await store.create(RESPONSE, [], [], NOBODY)
    context = span.get_span_context()
    sent = fake.calls("/storage/responses")[0].headers["traceparent"]
    assert sent == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


@pytest.mark.parametrize("status", [500, 503, 504])
async def test_a_write_is_tried_four_times_under_one_request_id(
    fake: FakePlatform, store: PlatformResponseStore, pauses: list[float], status: int
) -> None:
    fake.faults.append(Fault("/storage/responses", Answer(status), times=3))
    await store.create(RESPONSE, [], [], NOBODY)
    assert pauses == [0.0, 1.6, 3.2]
    calls = fake.calls("/storage/responses")
    assert len(calls) == 4
    assert len({call.headers["x-ms-client-request-id"] for call in calls}) == 1
    assert await store.get("r1", NOBODY) == RESPONSE


@pytest.mark.parametrize("status", [408, 429, 502])
async def test_after_these_a_read_is_tried_again_and_a_post_is_not(
    fake: FakePlatform, store: PlatformResponseStore, status: int
) -> None:
    await store.create(RESPONSE, [], [], NOBODY)
    fake.faults.append(Fault("/storage/responses", Answer(status), times=3))
    assert await store.get("r1", NOBODY) == RESPONSE
    fake.faults.append(Fault("/storage/responses", Answer(status), method="POST"))
    with pytest.raises(UnavailableError) as failed:
        await store.update(RESPONSE, NOBODY)
    assert (failed.value.status, failed.value.source) == (status, "platform")


async def test_a_platform_that_stays_away_is_unavailable_after_four_attempts(
    fake: FakePlatform, store: PlatformResponseStore
) -> None:
    body = {"error": {"code": "down", "message": "Come back later.", "param": None}}
    fake.faults.append(Fault("/storage/responses", Answer(503, body), times=99))
    with pytest.raises(UnavailableError, match="Come back later") as failed:
        await store.get("r1", NOBODY)
    assert (failed.value.status, failed.value.code, failed.value.source) == (503, "down", "platform")
    assert len(fake.calls("/storage/responses")) == 4


async def test_a_connection_that_breaks_is_tried_again(fake: FakePlatform, store: PlatformResponseStore) -> None:
    fake.faults.append(Fault("/storage/responses", None, times=2))
    await store.create(RESPONSE, [], [], NOBODY)
    assert await store.get("r1", NOBODY) == RESPONSE


async def test_a_write_whose_answer_was_lost_says_that_the_response_exists(
    fake: FakePlatform, store: PlatformResponseStore
) -> None:
    fake.faults.append(Fault("/storage/responses", Answer(503), done=True))
    with pytest.raises(AlreadyExistsError):
        await store.create(RESPONSE, [], [], NOBODY)
    fake.faults.append(Fault("/storage/responses", Answer(503), done=True))
    await store.update({**RESPONSE, "status": "failed"}, NOBODY)
    assert (await store.get("r1", NOBODY))["status"] == "failed"


async def test_retry_after_is_waited_for(fake: FakePlatform, store: PlatformResponseStore, pauses: list[float]) -> None:
    for value in ("7", formatdate(time.time() + 50, usegmt=True), formatdate(0, usegmt=True)):
        fake.faults.append(Fault("/storage/responses", Answer(503, headers={"retry-after": value})))
    await store.create(RESPONSE, [], [], NOBODY)
    seconds, until, past = pauses
    assert (seconds, past) == (7, 0)
    assert 0 < until <= 50


@pytest.mark.parametrize("value", ["soon", "-1", "1.5.7", ""])
async def test_a_retry_after_that_says_nothing_changes_nothing(
    fake: FakePlatform, store: PlatformResponseStore, pauses: list[float], value: str
) -> None:
    fake.faults.append(Fault("/storage/responses", Answer(503, headers={"retry-after": value}), times=2))
    await store.create(RESPONSE, [], [], NOBODY)
    assert pauses == [0.0, 1.6]


async def test_a_retry_after_beyond_a_minute_is_not_waited_for(
    fake: FakePlatform, store: PlatformResponseStore
) -> None:
    fake.faults.append(Fault("/storage/responses", Answer(503, headers={"retry-after": "3600"}), times=9))
    with pytest.raises(UnavailableError):
        await store.create(RESPONSE, [], [], NOBODY)
    assert len(fake.calls("/storage/responses")) == 1


@pytest.mark.parametrize(
    ("status", "code", "message", "kind", "source"),
    [
        (404, "not_found", "gone", NotFoundError, "user"),
        (400, "invalid_parameters", "bad", RefusedError, "user"),
        (409, "conflict", "taken", AlreadyExistsError, "user"),
        (409, "already_exists", "taken", AlreadyExistsError, "user"),
        (409, "duplicate_id", "taken", AlreadyExistsError, "user"),
        (409, "other", "Response r1 Already Exists", AlreadyExistsError, "user"),
        (409, "lease_held_by_another", "held", ConflictError, "user"),
        (412, "etag_mismatch", "stale", PreconditionFailedError, "user"),
        (403, "forbidden", "no", UnavailableError, "platform"),
        (418, "teapot", "?", UnavailableError, "platform"),
    ],
)
async def test_an_error_keeps_what_the_platform_said(
    fake: FakePlatform,
    store: PlatformResponseStore,
    status: int,
    code: str,
    message: str,
    kind: type[StoreError],
    source: str,
) -> None:
    body = {"error": {"code": code, "message": message, "param": "id"}}
    fake.faults.append(Fault("/storage/responses", Answer(status, body)))
    with pytest.raises(StoreError) as failed:
        await store.get("r1", NOBODY)
    error = failed.value
    assert type(error) is kind
    assert (error.status, error.code, error.message, error.param, error.source) == (
        status, code, message, "id", source,
    )  # fmt: skip


@pytest.mark.parametrize("body", ["<html>", ["x"], {"error": "text"}, {"error": {"code": 7, "message": None}}, None])
async def test_an_error_of_any_shape_is_an_error(fake: FakePlatform, store: PlatformResponseStore, body: Any) -> None:
    fake.faults.append(Fault("/storage/responses", Answer(404, body)))
    with pytest.raises(NotFoundError, match="404") as failed:
        await store.get("r1", NOBODY)
    assert failed.value.code == "not_found"


@pytest.mark.parametrize("path", ["/storage/responses", "items/batch", "history", "input_items"])
@pytest.mark.parametrize("body", [None, "text", 7, {"data": 7}])
async def test_an_answer_of_another_shape_is_the_platforms_fault(
    fake: FakePlatform, store: PlatformResponseStore, path: str, body: Any
) -> None:
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "/storage/responses": lambda: store.get("r1", NOBODY),
        "items/batch": lambda: store.items(["i1"], NOBODY),
        "history": lambda: store.history_item_ids(NOBODY, previous_response_id="r1", conversation_id=None),
        "input_items": lambda: store.input_items("r1", NOBODY, limit=1, ascending=True, after=None, before=None),
    }
    fake.faults.append(Fault(path, Answer(200, body)))
    if path == "/storage/responses" and isinstance(body, dict):
        assert await calls[path]() == body
        return
    with pytest.raises(UnavailableError):
        await calls[path]()


async def test_a_caller_with_line_breaks_sends_no_headers_of_its_own(
    fake: FakePlatform, store: PlatformResponseStore
) -> None:
    with pytest.raises(RefusedError):
        await store.get("r1", Caller(call_id="alice\r\nx-evil: 1"))
    assert fake.calls("/storage") == []


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://example.com/api/projects/p",
        "http://10.0.0.1/p",
        "http://localhost.example.com/p",
        "http://127.0.0.1.nip.io",
    ],
)
async def test_a_token_is_never_sent_in_the_clear_over_a_network(endpoint: str) -> None:
    http = HttpClient()
    with pytest.raises(ValueError, match="https"):
        Platform(endpoint, find_source({}, http), http)


@pytest.mark.parametrize("endpoint", ["", "ftp://host/x", "https://", "https://user:secret@host/x", "nonsense"])
async def test_an_endpoint_that_is_none_is_refused_at_once(endpoint: str) -> None:
    with pytest.raises(ValueError, match=r"FOUNDRY_PROJECT_ENDPOINT|URL"):
        Platform.from_environment({"FOUNDRY_PROJECT_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    "endpoint", ["https://example.com/p", "http://localhost:1/p", "http://127.9.9.9/p", "http://[::1]:8/p"]
)
async def test_tls_and_this_machine_are_confidential(endpoint: str) -> None:
    await Platform.from_environment({"FOUNDRY_PROJECT_ENDPOINT": endpoint}).close()
