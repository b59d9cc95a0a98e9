from __future__ import annotations

import asyncio
import re

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from cupola.api.http import Errors, RequestIds, json_object
from cupola.domain.errors import CupolaError
from tests.unit.api.application import Answer, Caller, Exchange


def raising(error: Exception) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise error

    return RequestIds(Errors(app))


async def read_json(scope: Scope, receive: Receive, send: Send) -> None:
    await json_object(Request(scope, receive))
    await PlainTextResponse("ok")(scope, receive, send)


READS = RequestIds(Errors(read_json))


async def call(app: ASGIApp, *headers: tuple[bytes, bytes]) -> Answer:
    return await Caller(app, None).call("POST", "/secret/path", b"{}", headers)


async def test_an_answer_has_the_callers_request_id() -> None:
    assert (await call(READS, (b"x-request-id", b"my-id:1"))).headers["x-request-id"] == "my-id:1"


@pytest.mark.parametrize("given", [b"", b"a b", b"\xff", b"x" * 129, b"a\r\nb", b"<script>"])
async def test_a_request_id_that_is_not_sane_is_replaced(given: bytes) -> None:
    made = (await call(READS, (b"x-request-id", given))).headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", made)


async def test_requests_without_an_id_get_different_ones() -> None:
    assert len({(await call(READS)).headers["x-request-id"] for _ in range(5)}) == 5


async def test_an_error_for_the_caller_is_shown() -> None:
    found = await call(raising(CupolaError("conflict", "Taken.", status=409, param="name")))
    assert found.error == (409, "conflict")
    assert (found.message, found.json["error"]["param"]) == ("Taken.", "name")
    assert not {"retry-after", "x-should-retry", "www-authenticate"} & set(found.headers)


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (CupolaError("Unauthorized", "No.", status=401), "www-authenticate", "Bearer"),
        (CupolaError("too_many_requests", "Wait.", status=429, retry_after=7), "retry-after", "7"),
        (CupolaError("agent_connection_lost", "Gone.", status=502, may_retry=False), "x-should-retry", "false"),
    ],
)
async def test_what_a_client_should_do_next_is_in_the_headers(error: CupolaError, name: str, value: str) -> None:
    assert (await call(raising(error))).headers[name] == value


async def test_an_error_that_is_not_for_the_caller_is_opaque(caplog: pytest.LogCaptureFixture) -> None:
    found = await call(raising(LookupError("a secret")))
    assert found.error == (500, "server_error")
    assert found.json["error"]["type"] == "server_error"
    assert "secret" not in found.body.decode()
    (record,) = caplog.records
    assert record.getMessage().rpartition(" ")[2] in found.message
    assert record.exc_info is not None


async def test_an_answer_that_fails_after_it_has_begun_is_broken_off() -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError("on purpose")

    exchange = Caller(RequestIds(Errors(app)), None).open("GET", "/")
    assert (await exchange.head())[0] == 200
    with pytest.raises(LookupError):
        await exchange.chunk()


async def test_a_client_that_leaves_during_its_request_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    exchange: Exchange = Caller(READS, None).open("POST", "/")
    exchange.send(b'{"half":', more=True)
    exchange.leave()
    await asyncio.wait_for(exchange.task, 20)
    assert caplog.records == []


async def test_other_connections_pass_untouched() -> None:
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> dict[str, str]:
        raise AssertionError("nothing is to be read")

    async def send(_: object) -> None:
        raise AssertionError("nothing is to be sent")

    await RequestIds(Errors(app))({"type": "lifespan"}, receive, send)
    assert seen == ["lifespan"]
