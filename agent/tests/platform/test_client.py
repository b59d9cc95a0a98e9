"""The HTTP client, against servers that behave well and badly."""

import asyncio
import datetime
import gzip
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from cupola_agent.call import Caller
from cupola_agent.platform.api import Platform
from cupola_agent.platform.client import HttpClient, HttpFailed
from cupola_agent.stores.base import NotFoundError, UnavailableError
from cupola_agent.stores.platform import PlatformResponseStore

from agent.tests.fake_platform import running_platform

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(script: Script) -> AsyncGenerator[tuple[str, list[int]], None]:
    """Runs the script on each connection; gives the URL and a list that grows with each connection."""
    accepted: list[int] = []
    handlers: list[asyncio.Task[None]] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(len(accepted))
        task = asyncio.current_task()
        assert task is not None
        handlers.append(task)
        try:
            await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client went away, or the test is over
        finally:
            writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/", accepted
    finally:
        listener.close()
        for handler in handlers:
            handler.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await listener.wait_closed()


def answers(*parts: bytes, close: bool = False) -> Script:
    """Answers each request with the parts, one write each."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                return

    return script


@pytest.fixture
async def http() -> AsyncGenerator[HttpClient, None]:
    client = HttpClient(max_body_bytes=100_000)
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("parts", "close", "body"),
    [
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",), False, b"hello"),
        ((b"HTTP/1.1 200 OK\r\nconte", b"nt-length: 5\r\n\r\nhe", b"llo"), False, b"hello"),
        (
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n"),
            False,
            b"hello",
        ),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), False, b""),
        ((b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",), False, b"ok"),
        ((b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhel", b"lo"), True, b"hello"),
        ((b"HTTP/1.0 200 OK\r\n\r\nhello",), True, b"hello"),
    ],
)
async def test_an_answer_of_any_framing_is_read(
    http: HttpClient, parts: tuple[bytes, ...], close: bool, body: bytes
) -> None:
    async with server(answers(*parts, close=close)) as (url, accepted):
        for _ in range(3):
            answer = await http.request("GET", url, {}, timeout=10)
            assert answer.body == body
            assert "link" not in answer.headers
    assert len(accepted) == (3 if close else 1)


def test_it_works_on_uvloop_whose_transports_are_of_another_kind() -> None:
    async def ask() -> bytes:
        http = HttpClient()
        async with server(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")) as (url, _):
            answer = await http.request("GET", url, {}, timeout=10)
        await http.close()
        return answer.body

    assert uvloop.run(ask()) == b"ok"


async def test_a_compressed_answer_is_read_though_nobody_asked_for_it(http: HttpClient) -> None:
    packed = gzip.compress(b"hello")
    head = f"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {len(packed)}\r\n\r\n".encode()
    async with server(answers(head + packed)) as (url, _):
        assert (await http.request("GET", url, {}, timeout=10)).body == b"hello"


BOMB = gzip.compress(bytes(10_000_000))


@pytest.mark.parametrize(
    "answer",
    [
        b"not HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100001\r\n\r\n" + bytes(100_001),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(200_000),
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(BOMB) + BOMB,
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 3\r\n\r\nxyz",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 3\r\n\r\nxyz",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
    ],
)
async def test_a_bad_answer_fails_the_request_and_its_connection(http: HttpClient, answer: bytes) -> None:
    async with server(answers(answer, close=True)) as (url, _):
        with pytest.raises(HttpFailed):
            await http.request("GET", url, {}, timeout=10)
    async with server(answers(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")) as (url, _):
        assert (await http.request("GET", url, {}, timeout=10)).body == b"ok"


async def test_what_is_sent_unasked_is_not_taken_for_the_next_answer(http: HttpClient) -> None:
    """Two answers to one request; the second must not answer the next request."""
    once = b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"
    async with server(answers(once + b"1" + once + b"2")) as (url, _):
        for _ in range(3):
            assert (await http.request("GET", url, {}, timeout=10)).body == b"1"


async def test_a_server_that_does_not_answer_is_left_after_the_deadline(http: HttpClient) -> None:
    async with server(answers()) as (url, accepted):
        with pytest.raises(HttpFailed, match="within"):
            await http.request("GET", url, {}, timeout=0.05)
        with pytest.raises(HttpFailed, match="within"):
            await http.request("GET", url, {}, timeout=0.05)
    assert len(accepted) == 2


async def test_a_given_up_request_does_not_leave_its_answer_to_the_next(http: HttpClient) -> None:
    asked: list[bytes] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1])
            if len(asked) == 1:
                await asyncio.sleep(3600)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(asked[-1]) + asked[-1])

    async with server(echo) as (url, _):
        given_up = asyncio.create_task(http.request("GET", url + "first", {}, timeout=10))
        while not asked:
            await asyncio.sleep(0.001)
        given_up.cancel()
        assert (await http.request("GET", url + "second", {}, timeout=10)).body == b"/second"


async def test_a_connection_the_server_closed_while_idle_is_replaced(http: HttpClient) -> None:
    answered = 0

    async def leaves(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Says that the connection stays open and closes it when the next request arrives."""
        nonlocal answered
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        answered += 1
        await reader.readuntil(b"\r\n\r\n")

    async with server(leaves) as (url, accepted):
        for _ in range(3):
            assert (await http.request("GET", url, {}, timeout=10)).body == b"ok"
    assert len(accepted) == answered == 3


async def test_many_requests_at_once_each_get_their_answer(http: HttpClient) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
            await asyncio.sleep(0)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(path) + path)

    async with server(echo) as (url, accepted):
        found = await asyncio.gather(*(http.request("GET", f"{url}{n}", {}, timeout=30) for n in range(200)))
        assert [answer.body for answer in found] == [b"/%d" % n for n in range(200)]
        before = len(accepted)
        for _ in range(50):
            await http.request("GET", url, {}, timeout=30)
        assert len(accepted) == before


async def test_nobody_listens(http: HttpClient) -> None:
    async with server(answers()) as (url, _):
        closed = url
    with pytest.raises(HttpFailed, match="no connection"):
        await http.request("GET", closed, {}, timeout=10)


@pytest.mark.parametrize("text", ["a\r\nx: y", "a\nb", "a\0b"])
async def test_headers_cannot_be_smuggled_in(http: HttpClient, text: str) -> None:
    with pytest.raises(ValueError, match="line breaks"):
        await http.request("GET", "http://127.0.0.1:9/", {"x": text}, timeout=10)


async def test_a_private_authority_named_by_ssl_cert_file_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = tmp_path / "certificate.pem"
    key = tmp_path / "key.pem"
    write_certificate(certificate, key)
    context.load_cert_chain(certificate, key)
    async with running_platform(tmp_path, tls=context) as fake:

        async def at_once(seconds: float) -> None:
            return

        untrusting = PlatformResponseStore(Platform.from_environment(fake.variables, sleep=at_once))
        with pytest.raises(UnavailableError, match="certificate"):
            await untrusting.get("r1", Caller())
        await untrusting.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusting = PlatformResponseStore(Platform.from_environment(fake.variables))
        with pytest.raises(NotFoundError):
            await trusting.get("r1", Caller())
        await trusting.close()


def write_certificate(certificate: Path, key: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
