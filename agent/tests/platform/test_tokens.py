"""Where tokens come from and how long they are used (contract section 3.4)."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from cupola_agent.call import Caller
from cupola_agent.platform.api import Platform
from cupola_agent.platform.client import HttpClient
from cupola_agent.platform.tokens import Token, TokenSource, find_source
from cupola_agent.stores.base import NotFoundError, UnavailableError
from cupola_agent.stores.platform import PlatformResponseStore

from agent.tests.fake_platform import Answer, FakePlatform, Fault, running_platform


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncGenerator[FakePlatform, None]:
    async with running_platform(tmp_path) as running:
        yield running


@pytest.fixture
async def http() -> AsyncGenerator[HttpClient, None]:
    client = HttpClient()
    yield client
    await client.close()


class Issuer:
    """Issues tokens good for a while, unless it is down."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.issued = 0
        self.down = False

    async def fetch(self) -> Token:
        await asyncio.sleep(0)
        if self.down:
            raise UnavailableError("down")
        self.issued += 1
        return Token(f"token-{self.issued}", self.now + self.seconds)


async def test_many_who_need_a_token_share_one_fetch() -> None:
    issuer = Issuer(3600)
    source = TokenSource(issuer.fetch, lambda: issuer.now)
    assert set(await asyncio.gather(*(source.token() for _ in range(50)))) == {"token-1"}


async def test_the_next_one_fetches_when_the_first_gives_up() -> None:
    issuer = Issuer(3600)
    source = TokenSource(issuer.fetch, lambda: issuer.now)
    first, second = asyncio.create_task(source.token()), asyncio.create_task(source.token())
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "token-1"


@pytest.mark.parametrize(("seconds", "last_use", "renewed"), [(3600, 3299, 3300), (60, 44, 45)])
async def test_a_token_is_renewed_shortly_before_it_expires(seconds: float, last_use: float, renewed: float) -> None:
    issuer = Issuer(seconds)
    source = TokenSource(issuer.fetch, lambda: issuer.now)
    assert await source.token() == "token-1"
    issuer.now = last_use
    assert await source.token() == "token-1"
    issuer.now = renewed
    assert await source.token() == "token-2"


async def test_a_token_that_cannot_be_renewed_is_used_while_it_is_good() -> None:
    issuer = Issuer(3600)
    source = TokenSource(issuer.fetch, lambda: issuer.now)
    await source.token()
    issuer.down, issuer.now = True, 3400
    assert await source.token() == "token-1"
    issuer.now = 3600
    with pytest.raises(UnavailableError):
        await source.token()
    issuer.down = False
    assert await source.token() == "token-2"


async def test_a_refused_token_is_replaced_once(fake: FakePlatform) -> None:
    store = PlatformResponseStore(Platform.from_environment(fake.variables))
    with pytest.raises(NotFoundError):
        await store.get("r1", Caller())
    fake.issued[:] = ["another"]
    with pytest.raises(NotFoundError):
        await store.get("r1", Caller())
    fake.faults.append(Fault("/storage", Answer(401), times=9))
    with pytest.raises(UnavailableError) as failed:
        await store.get("r1", Caller())
    assert failed.value.status == 401
    assert [call.headers["authorization"] for call in fake.calls("/storage")] == [
        "Bearer token-0", "Bearer token-0", "Bearer token-1", "Bearer token-1", "Bearer token-2",
    ]  # fmt: skip
    await store.close()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500),
        Answer(200, {"access_token": "x"}),
        Answer(200, {"access_token": "x", "expires_on": "tomorrow"}),
        Answer(200, ["x"]),
        Answer(200, "x"),
        None,
    ],
)
async def test_a_token_endpoint_that_gives_none_is_unavailable(
    fake: FakePlatform, http: HttpClient, answer: Answer | None
) -> None:
    fake.faults.append(Fault("/identity", answer, times=9))
    with pytest.raises(UnavailableError, match="token endpoint"):
        await find_source(fake.variables, http).token()


async def test_a_workload_identity_trades_its_assertion_for_a_token(tmp_path: Path, http: HttpClient) -> None:
    """The authority answers as Entra does; the assertion is read again each time, as a cluster replaces it."""
    asked: list[str] = []

    async def authority(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
        asked.append(head.split(" ")[1] + " " + (await reader.readexactly(length)).decode())
        body = b'{"access_token":"exchanged","expires_in":0}'
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n" + body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(authority, "127.0.0.1", 0)
    assertion = tmp_path / "assertion"
    source = find_source(
        {
            "AZURE_FEDERATED_TOKEN_FILE": str(assertion),
            "AZURE_CLIENT_ID": "me",
            "AZURE_TENANT_ID": "us",
            "AZURE_AUTHORITY_HOST": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/",
        },
        http,
    )
    with pytest.raises(UnavailableError, match="AZURE_FEDERATED_TOKEN_FILE"):
        await source.token()
    for number in range(2):
        assertion.write_text(f"assertion-{number}\n")
        assert await source.token() == "exchanged"
    server.close()
    await server.wait_closed()
    for number, line in enumerate(asked):
        path, form = line.split(" ")
        assert path == "/us/oauth2/v2.0/token"
        assert f"client_assertion=assertion-{number}" in form.split("&")
        assert {"client_id=me", "scope=https%3A%2F%2Fai.azure.com%2F.default"} < set(form.split("&"))


async def test_an_assertion_is_never_sent_in_the_clear(http: HttpClient) -> None:
    with pytest.raises(ValueError, match="AZURE_AUTHORITY_HOST"):
        find_source({"AZURE_FEDERATED_TOKEN_FILE": "x", "AZURE_AUTHORITY_HOST": "http://login.example.com"}, http)
