from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cupola_agent import Agent, InvocationContext, Request, Response
from cupola_agent.call import current_call
from cupola_agent.testing import TestClient


def client(function: Callable[..., Any], **environ: str) -> TestClient:
    agent = Agent(environ=environ)
    agent.invocations(function)
    return TestClient(agent)


def echo(request: Request) -> Response:
    return Response(request.body, media_type=request.content_type)


async def pieces() -> AsyncIterator[str]:
    yield "é"
    yield "2"


def byte_pieces() -> Iterator[bytes]:
    yield b"\xff"
    yield b"2"


TEXT, BYTES, JSON = "text/plain; charset=utf-8", "application/octet-stream", "application/json"


@pytest.mark.parametrize(
    ("function", "status", "media_type", "body"),
    [
        (lambda: "hé", 200, TEXT, "hé".encode()),
        (lambda: b"\x00", 200, BYTES, b"\x00"),
        (lambda: {"a": [1]}, 200, JSON, b'{"a":[1]}'),
        (lambda: [1, "x"], 200, JSON, b'[1,"x"]'),
        (lambda: None, 200, BYTES, b""),
        (pieces, 200, TEXT, "é2".encode()),
        (byte_pieces, 200, BYTES, b"\xff2"),
        (lambda: Response({"id": 1}, status=202), 202, JSON, b'{"id":1}'),
        (lambda: Response(pieces(), media_type="text/event-stream"), 200, "text/event-stream", "é2".encode()),
        (lambda: Response("x", headers={"Content-Type": "a/b"}), 200, "a/b", b"x"),
        (
            lambda: SimpleNamespace(
                status_code=201, body=b"x", headers={"content-length": "1"}, media_type="a/b"
            ),
            201, "a/b", b"x",
        ),
    ],
)  # fmt: skip
async def test_what_a_handler_may_give(function: Callable[..., Any], status: int, media_type: str, body: bytes) -> None:
    answer = await client(function).post("/invocations")
    assert (answer.status, answer.headers["content-type"], answer.body) == (status, media_type, body)


async def test_any_body_comes_through() -> None:
    body = bytes(range(256)) * 10
    answer = await client(echo).post("/invocations", content=body, headers={"content-type": "image/x"})
    assert (answer.body, answer.headers["content-type"]) == (body, "image/x")


async def test_ids_are_the_callers_when_they_fit() -> None:
    def ids(context: InvocationContext) -> list[str]:
        return [context.invocation_id, context.session_id]

    answer = await client(ids, FOUNDRY_AGENT_SESSION_ID="box").post(
        "/invocations?agent_session_id=mine", headers={"x-agent-invocation-id": "inv-1"}
    )
    assert answer.json() == ["inv-1", "mine"]
    assert answer.headers["x-agent-invocation-id"] == "inv-1"
    assert answer.headers["x-agent-session-id"] == "mine"
    answer = await client(ids, FOUNDRY_AGENT_SESSION_ID="box").post(
        "/invocations?agent_session_id=a%0d%0ab", headers={"x-agent-invocation-id": "a b"}
    )
    assert len(answer.headers["x-agent-invocation-id"]) == 36
    assert answer.headers["x-agent-session-id"] == "box"
    assert len((await client(ids).post("/invocations")).headers["x-agent-session-id"]) == 36


def raises() -> str:
    raise LookupError("secret detail")


async def raises_before_its_first_piece() -> AsyncIterator[str]:
    raises()
    yield ""


@pytest.mark.parametrize(
    "function",
    [
        raises,
        raises_before_its_first_piece,
        lambda: object(),
        lambda: {object(): 1},
        lambda: Response("", status=42),
        lambda: SimpleNamespace(status_code=200, headers={}),
        lambda: Response("", headers={"x": "a\r\nb: c"}),
    ],
)
async def test_a_failure_is_a_500_without_details(
    function: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    answer = await client(function).post("/invocations")
    assert answer.status == 500
    assert answer.json() == {"error": {"code": "internal_error", "message": "Internal server error"}}
    assert answer.headers["x-platform-error-source"] == "upstream"
    assert {"x-agent-invocation-id", "x-agent-session-id"} <= set(answer.headers)
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/invocations/one", "get_invocation not implemented"),
        ("POST", "/invocations/one/cancel", "cancel_invocation not implemented"),
    ],
)
async def test_id_routes_without_handlers(method: str, path: str, message: str) -> None:
    answer = await client(echo).request(method, path)
    assert answer.status == 404
    assert answer.json() == {"error": {"code": "not_found", "message": message}}
    assert answer.headers["x-agent-invocation-id"] == "one"
    assert "x-agent-session-id" not in answer.headers


async def test_id_routes_with_handlers() -> None:
    agent = Agent(environ={})
    agent.get_invocation(lambda context: {"got": context.invocation_id})
    agent.cancel_invocation(lambda context: {"cancelled": context.invocation_id})
    test = TestClient(agent)
    assert (await test.get("/invocations/one")).json() == {"got": "one"}
    assert (await test.post("/invocations/one/cancel")).json() == {"cancelled": "one"}
    answer = await test.post("/invocations")
    assert (answer.status, answer.json()["error"]["code"]) == (501, "not_implemented")


async def test_an_id_in_the_path_that_is_no_header_is_not_sent_back_as_one() -> None:
    agent = Agent(environ={})
    agent.get_invocation(lambda context: {"got": context.invocation_id})
    answer = await TestClient(agent).get("/invocations/a%0D%0Ab: c")
    assert answer.status == 200
    assert "x-agent-invocation-id" not in answer.headers
    assert "b" not in answer.headers


async def test_a_handler_sees_who_calls() -> None:
    def who(request: Request, context: InvocationContext) -> dict[str, Any]:
        models = current_call().call_id
        return {
            "user": context.user_id,
            "call": [context.call_id, models],
            "client": dict(context.client_headers),
            "query": request.query,
            "id": context.request_id == request.request_id,
        }

    headers = {"x-agent-user-id": "u", "x-agent-foundry-call-id": "c", "x-client-theme": "dark"}
    answer = await client(who).post("/invocations?a=1&a=2", headers=headers)
    assert answer.json() == {
        "user": "u",
        "call": ["c", "c"],
        "client": {"x-client-theme": "dark"},
        "query": {"a": "2"},
        "id": True,
    }


async def test_the_body_comes_as_a_stream_where_it_is_asked_for() -> None:
    async def sizes(request: Request, stream: AsyncIterator[bytes]) -> AsyncIterator[str]:
        yield f"{len(request.body)}"
        async for piece in stream:
            yield f" {len(piece)}"

    assert (await client(sizes).post("/invocations", content=b"abc")).text == "0 3"


def test_only_an_async_handler_may_ask_for_the_stream() -> None:
    agent = Agent(environ={})
    with pytest.raises(TypeError, match="must be async"):
        agent.invocations(lambda stream: stream)
    with pytest.raises(TypeError, match="takes only parameters named request, context"):
        agent.get_invocation(lambda stream: stream)


async def test_the_librarys_own_headers_are_not_the_handlers() -> None:
    own = {"X-Request-Id": "mine", "x-agent-invocation-id": "mine", "x-platform-server": "mine", "Content-Length": "9"}
    answer = await client(lambda: Response("ok", headers={**own, "x-other": "yes"})).post("/invocations")
    assert answer.body == b"ok"
    assert answer.headers["content-length"] == "2"
    assert answer.headers["x-other"] == "yes"
    assert "mine" not in answer.headers.values()


async def test_new_work_is_refused_while_the_process_ends() -> None:
    agent = Agent(environ={})
    agent.invocations(lambda: "done")
    agent.get_invocation(lambda: "still here")
    agent.drain()
    test = TestClient(agent)
    answer = await test.post("/invocations")
    assert answer.status == 503
    assert answer.json() == {"error": {"code": "service_unavailable", "message": "Server is shutting down."}}
    assert answer.headers["x-platform-error-source"] == "platform"
    assert (await test.get("/invocations/one")).text == "still here"


async def test_documents_are_served_as_they_were_given() -> None:
    agent = Agent(environ={}, openapi={"openapi": "3.1.0"}, asyncapi={"asyncapi": "3.0.0"}, asyncapi_yaml="a: é\n")
    test = TestClient(agent)
    assert (await test.get("/invocations/docs/openapi.json")).json() == {"openapi": "3.1.0"}
    assert (await test.get("/invocations/docs/asyncapi.json")).json() == {"asyncapi": "3.0.0"}
    yaml = await test.get("/invocations/docs/asyncapi.yaml")
    assert (yaml.text, yaml.headers["content-type"]) == ("a: é\n", "application/yaml; charset=utf-8")
    assert "x-agent-invocation-id" not in yaml.headers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("openapi.json", "OpenAPI spec"),
        ("asyncapi.json", "AsyncAPI (JSON) spec"),
        ("asyncapi.yaml", "AsyncAPI (YAML) spec"),
    ],
)
async def test_a_document_that_was_not_given_is_not_found(name: str, kind: str) -> None:
    answer = await client(echo).get(f"/invocations/docs/{name}")
    assert answer.status == 404
    assert answer.json() == {"error": {"code": "not_found", "message": f"No {kind} registered"}}


async def test_a_body_beyond_what_is_collected_is_refused_in_this_protocols_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cupola_agent.testing.MAX_BODY", 10)
    answer = await client(echo).post("/invocations", content=bytes(11))
    assert answer.status == 413
    assert set(answer.json()["error"]) == {"code", "message"}
    assert "x-agent-invocation-id" in answer.headers
