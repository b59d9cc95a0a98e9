import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cupola_agent import Agent, InvocationContext, Request, Response
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


async def test_a_stream_arrives_piece_by_piece() -> None:
    assert (await client(pieces).post("/invocations")).chunks == ("é".encode(), b"2")


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
        lambda: {"x": float("nan")},
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


async def test_a_failure_within_a_stream_breaks_it_off(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> AsyncIterator[str]:
        yield "one"
        raise LookupError("lost")

    with pytest.raises(ConnectionError):
        await client(fails).post("/invocations")
    assert "LookupError: lost" in caplog.text


async def test_leaving_a_stream_cancels_the_handler() -> None:
    ended: list[type[BaseException]] = []

    async def endless() -> AsyncIterator[str]:
        try:
            yield "one"
            await asyncio.sleep(60)
        except BaseException as error:
            ended.append(type(error))
            raise

    async with client(endless).stream("POST", "/invocations") as stream:
        assert await anext(aiter(stream.chunks())) == b"one"
    assert ended == [asyncio.CancelledError]


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
    assert "x-agent-invocation-id" not in (await test.get("/invocations/a\r\nb")).headers
    assert (await test.post("/invocations")).status == 501
