import asyncio
import logging

import pytest
from cupola_agent import Agent
from cupola_agent.testing import TestClient


def agent() -> Agent:
    made = Agent(environ={})
    made.responses(lambda: "hi")
    return made


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_readiness(method: str) -> None:
    answer = await TestClient(agent()).request(method, "/readiness")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["content-length"] == "20"
    assert answer.body == (b'{"status":"healthy"}' if method == "GET" else b"")


@pytest.mark.parametrize("path", ["/", "/liveness", "/responses/", "/responses/a/b", "/invocations", "//responses"])
async def test_a_path_without_a_route(path: str) -> None:
    answer = await TestClient(agent()).get(path)
    assert (answer.status, answer.text) == (404, "Not Found")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert {"x-request-id", "x-platform-server"} <= set(answer.headers)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/responses", "POST"),
        ("POST", "/readiness", "GET, HEAD"),
        ("POST", "/responses/some", "DELETE, GET, HEAD"),
    ],
)
async def test_a_method_without_a_route(method: str, path: str, allow: str) -> None:
    answer = await TestClient(agent()).request(method, path)
    assert (answer.status, answer.text, answer.headers["allow"]) == (405, "Method Not Allowed", allow)


async def test_without_handlers_there_is_only_readiness() -> None:
    client = TestClient(Agent(environ={}))
    assert (await client.post("/responses", json={})).status == 404
    assert (await client.post("/invocations")).status == 404
    assert (await client.get("/readiness")).status == 200


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "x-request-id": "mine"}, TRACE),
        ({"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01", "x-request-id": "mine"}, "mine"),
        ({"x-request-id": "mine"}, "mine"),
    ],
)
async def test_the_request_id_answered(headers: dict[str, str], expected: str) -> None:
    answer = await TestClient(agent()).get("/readiness", headers=headers)
    assert answer.headers["x-request-id"] == expected


async def test_a_new_request_id_is_32_hex_digits() -> None:
    answer = await TestClient(agent()).get("/readiness")
    assert len(bytes.fromhex(answer.headers["x-request-id"])) == 16


async def test_the_server_names_itself() -> None:
    answer = await TestClient(agent()).get("/readiness")
    assert answer.headers["x-platform-server"].startswith("cupola-agent/")
    assert "(python/3." in answer.headers["x-platform-server"]


async def test_lifespan_and_requests_within_it() -> None:
    async with TestClient(agent()) as client:
        assert (await client.get("/readiness")).status == 200


async def test_a_client_that_leaves_cancels_a_handler_that_has_not_answered() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()
    made = Agent(environ={})

    @made.invocations
    async def invoke() -> str:
        entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "late"

    async def call() -> None:
        async with TestClient(made).stream("POST", "/invocations"):
            pass

    caller = asyncio.create_task(call())
    await entered.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert cancelled.is_set()


async def test_a_cancellation_from_outside_stays_one() -> None:
    entered = asyncio.Event()
    made = Agent(environ={})

    @made.invocations
    async def invoke() -> None:
        entered.set()
        await asyncio.sleep(60)

    caller = asyncio.create_task(_call_without_leaving(made))
    await entered.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller


async def _call_without_leaving(made: Agent) -> None:
    requests = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> dict[str, object]:
        if requests:
            return requests.pop()
        await asyncio.sleep(60)
        raise AssertionError("unreachable")

    async def send(_: object) -> None:
        raise AssertionError("nothing to send")

    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": [], "query_string": b""}
    await made(scope, receive, send)


async def test_bodies_and_query_strings_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await TestClient(agent()).post("/responses?secret=q", json={"input": "private"})
    assert answer.status == 200
    assert "POST /responses 200" in caplog.text
    assert "secret" not in caplog.text
    assert "private" not in caplog.text
