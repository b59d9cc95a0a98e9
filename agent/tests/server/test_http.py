"""HTTP/1.1 as the server speaks it, byte by byte."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from cupola_agent.exchange import BodyTooLargeError, ClientDisconnectedError, Exchange

Serve = Callable[..., AbstractAsyncContextManager[Any]]

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
TEXT = ((b"content-type", b"text/plain"),)


def post(path: bytes, body: bytes, *lines: bytes) -> bytes:
    extra = b"".join(line + b"\r\n" for line in lines)
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (path, extra, len(body), body)


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (GET, b"GET /  "),
        (b"\r\n" + GET, b"GET /  "),
        (post(b"/a/b?x=1&y", b"body"), b"POST /a/b x=1&y body"),
        (b"GET /%C3%A4%2Fb%0d%0a HTTP/1.1\r\nHost: a\r\n\r\n", "GET /ä/b\r\n  ".encode()),
        (b"GET http://host/path?q HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /path q "),
        (b"GET http://host HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /  "),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b"OPTIONS *  "),
        (CHUNKED + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: v\r\n\r\n", b"POST /  abcde"),
        (b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", b"POST /  hi"),
        (UPGRADE + b"Content-Length: 3\r\n\r\nabc", b"POST /  abc"),
        (UPGRADE + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", b"POST /  x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("byte_by_byte", [False, True])
async def test_what_arrives(echo_server: Any, request_bytes: bytes, expected: bytes, byte_by_byte: bool) -> None:
    raw = await echo_server.connect()
    if byte_by_byte:
        for index in range(len(request_bytes)):
            raw.send(request_bytes[index : index + 1])
            await raw.writer.drain()
            await asyncio.sleep(0)
    else:
        raw.send(request_bytes)
    status, headers, body = await raw.response()
    assert (status, body) == (200, expected)
    assert headers["content-length"] == str(len(expected))
    assert headers["content-type"] == "text/plain"
    assert headers["date"].endswith(" GMT")


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\nabc"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
        (400, b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\nHost: a\n\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"get / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"),
        (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n"),
        (431, b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(200)) + b"\r\n"),
    ],
)  # fmt: skip
async def test_what_is_refused(echo_server: Any, status: int, request_bytes: bytes) -> None:
    raw = await echo_server.connect()
    raw.send(request_bytes)
    answered, headers, _ = await raw.response()
    assert (answered, headers["connection"]) == (status, "close")
    assert await raw.rest() == b""


@pytest.mark.parametrize(
    "broken", [b"zz\r\nabc\r\n", b"fffffffffffffffff\r\nabc", b"3\nabc\n", b"3 \r\nabc\r\n", b"1\r\nabc\r\n"]
)
async def test_a_chunk_that_is_none_breaks_the_body(serve: Serve, broken: bytes) -> None:
    reading, raised = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        reading.set()
        try:
            await exchange.body()
        except ClientDisconnectedError:
            assert exchange.disconnected
            raised.set()

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.wait_for(reading.wait(), 10)
        raw.send(broken)
        assert (await raw.response())[0] == 400
        assert await raw.rest() == b""
        await asyncio.wait_for(raised.wait(), 10)


async def test_a_head_that_is_too_big_in_small_pieces_is_refused_before_it_ends(echo_server: Any) -> None:
    raw = await echo_server.connect()
    raw.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
    for _ in range(80):
        raw.send(b"x" * 1000)
        await raw.writer.drain()
        await asyncio.sleep(0)
    assert (await raw.response())[0] == 431


async def test_a_hundred_headers_and_repeated_ones_arrive(serve: Serve) -> None:
    async def answer(exchange: Exchange) -> None:
        text = f"{len(exchange.headers)} {exchange.headers['x-1']} {exchange.headers['x-repeated']}"
        exchange.respond(200, TEXT, text.encode())

    lines = b"".join(b"X-%d: value %d\r\n" % (n, n) for n in range(100))
    async with serve(answer) as served:
        _, _, body = await served.exchange(
            b"GET / HTTP/1.1\r\nHost: a\r\nX-Repeated: a\r\n%bx-repeated:b\r\n\r\n" % lines
        )
    assert body == b"102 value 1 a, b"


async def test_requests_one_after_the_other_on_one_connection(echo_server: Any) -> None:
    raw = await echo_server.connect()
    for number in range(3):
        raw.send(post(b"/%d" % number, b"x" * number))
        status, headers, body = await raw.response()
        assert (status, body) == (200, b"POST /%d  " % number + b"x" * number)
        assert "connection" not in headers


async def test_pipelined_requests_are_answered_one_at_a_time_in_order(serve: Serve) -> None:
    running: list[str] = []

    async def answer(exchange: Exchange) -> None:
        running.append(exchange.path)
        assert len(running) == 1
        await asyncio.sleep(0.001)
        running.remove(exchange.path)
        exchange.respond(200, TEXT, exchange.path.encode() + await exchange.body())

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(b"".join(post(b"/%d" % number, b" body") for number in range(50)))
        for number in range(50):
            assert (await raw.response())[2] == b"/%d body" % number


async def test_a_broken_request_behind_good_ones_is_refused_after_their_answers(echo_server: Any) -> None:
    raw = await echo_server.connect()
    raw.send(post(b"/1", b""), post(b"/2", b""), b"BROKEN\r\n\r\n")
    assert (await raw.response())[2] == b"POST /1  "
    assert (await raw.response())[2] == b"POST /2  "
    assert (await raw.response())[0] == 400
    assert await raw.rest() == b""


@pytest.mark.parametrize(
    ("request_bytes", "connection"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "close"),
        (b"GET / HTTP/1.0\r\n\r\n", "close"),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "keep-alive"),
        (GET, None),
    ],
)
async def test_whether_the_connection_stays(echo_server: Any, request_bytes: bytes, connection: str | None) -> None:
    raw = await echo_server.connect()
    raw.send(request_bytes)
    assert (await raw.response())[1].get("connection") == connection
    if connection == "close":
        assert await raw.rest() == b""
    else:
        raw.send(GET)
        assert (await raw.response())[0] == 200


async def test_head_has_the_headers_of_get_and_no_body(echo_server: Any) -> None:
    raw = await echo_server.connect()
    raw.send(b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answer = await raw.rest()
    assert b"content-length: 8\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


async def streaming(exchange: Exchange) -> None:
    exchange.start(200, TEXT)
    exchange.write(b"a")
    exchange.write(b"b")
    await asyncio.sleep(0.02)
    exchange.write(b"c")
    await exchange.drained()
    exchange.finish()


async def test_what_is_written_together_leaves_in_one_chunk_and_a_lone_piece_at_once(serve: Serve) -> None:
    async with serve(streaming) as served:
        raw = await served.connect()
        for _ in range(2):
            raw.send(GET)
            status, headers, body = await raw.response()
            assert (status, headers["transfer-encoding"], body) == (200, "chunked", b"ab|c")


async def test_a_stream_over_http_1_0_ends_with_the_connection(serve: Serve) -> None:
    async with serve(streaming) as served:
        raw = await served.connect()
        raw.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        head, _, body = (await raw.rest()).partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert b"transfer-encoding" not in head
        assert body == b"abc"


async def test_a_streamed_answer_to_head_has_no_body(serve: Serve) -> None:
    async with serve(streaming) as served:
        raw = await served.connect()
        raw.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        raw.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await raw.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    ("pieces", "complete"), [((b"abc", b"de"), True), ((b"abc",), False), ((b"abc", b"defg"), False)]
)
async def test_a_stream_with_a_length_of_its_own(serve: Serve, pieces: tuple[bytes, ...], complete: bool) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.start(200, [(b"content-length", b"5")])
        for piece in pieces:
            exchange.write(piece)
        exchange.finish()

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        if complete:
            status, headers, body = await raw.response()
            assert (status, headers["content-length"], body) == (200, "5", b"abcde")
            assert "transfer-encoding" not in headers
            raw.send(GET)
            assert (await raw.response())[2] == b"abcde"
        else:
            assert len((await raw.rest()).partition(b"\r\n\r\n")[2]) < 5


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body(serve: Serve, status: int) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(status, (), b"")

    async with serve(answer) as served:
        raw = await served.connect()
        for _ in range(2):
            raw.send(GET)
            assert (await raw.response())[0] == status


async def test_an_aborted_stream_gives_what_was_written_and_no_end(serve: Serve) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.start(200, TEXT)
        exchange.write(b"part")
        exchange.abort()

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        assert (await raw.rest()).endswith(b"\r\n\r\n4\r\npart\r\n")


@pytest.mark.parametrize(
    "headers",
    [
        [(b"x-a", b"1\r\nx-b: 2")],
        [(b"x-a", b"1\n")],
        [(b"x-a", b"\r")],
        [(b"x-a", b"\0")],
        [(b"x a", b"1")],
        [(b"x-a:", b"1")],
        [(b"", b"1")],
        [(b"x-a\r\n", b"1")],
    ],
)
async def test_a_header_that_would_split_the_answer_becomes_a_500(
    serve: Serve, headers: list[tuple[bytes, bytes]]
) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(200, headers, b"")

    async with serve(answer) as served:
        status, answered, _ = await served.exchange(GET)
    assert status == 500
    assert "x-b" not in answered


async def test_headers_that_are_the_servers_own_are_not_doubled(serve: Serve) -> None:
    given = [
        (b"Content-Length", b"99"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Date", b"never"),
        (b"connection", b"keep-alive"),
    ]

    async def answer(exchange: Exchange) -> None:
        exchange.respond(200, given, b"abc")

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        head = await raw.until(b"\r\n\r\n")
    assert head.lower().count(b"content-length") == 1
    assert b"content-length: 3\r\n" in head
    assert b"transfer-encoding" not in head.lower()
    assert head.lower().count(b"\r\ndate: ") == 1
    assert head.count(b"connection: keep-alive\r\n") == 1


async def test_an_exception_becomes_a_500_with_an_id_that_the_log_has_too(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(_: Exchange) -> None:
        raise ValueError("private")

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        status, _, body = await raw.response()
        raw.send(GET)
        assert (await raw.response())[0] == 500
    assert status == 500
    assert b"private" not in body
    assert body.decode().rpartition(" ")[2].removesuffix('"}}') in caplog.text
    assert "private" in caplog.text


async def test_an_exception_in_the_middle_cuts_the_answer(serve: Serve) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.start(200, TEXT)
        exchange.write(b"part")
        raise ValueError

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        assert (await raw.rest()).endswith(b"4\r\npart\r\n")


async def test_an_application_that_does_not_answer_gives_a_500(serve: Serve) -> None:
    async def answer(_: Exchange) -> None:
        return

    async with serve(answer) as served:
        assert (await served.exchange(GET))[0] == 500


# The body.


async def test_the_body_in_pieces_as_it_arrives(serve: Serve) -> None:
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        async for piece in exchange.chunks():
            await arrived.put(piece)
        exchange.respond(200, TEXT, b"")

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n")
        for piece in (b"ab", b"cd", b"ef"):
            raw.send(piece)
            assert await asyncio.wait_for(arrived.get(), 10) == piece
        assert (await raw.response())[0] == 200


async def test_100_continue_comes_when_the_body_is_wanted(echo_server: Any) -> None:
    raw = await echo_server.connect()
    raw.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert await raw.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    raw.send(b"body")
    assert (await raw.response())[2] == b"POST /  body"
    raw.send(GET)
    assert (await raw.response())[0] == 200


async def test_no_100_continue_for_a_body_that_nobody_wants(serve: Serve) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(413, (), b"")

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        answer_bytes = await raw.rest()
    assert answer_bytes.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer_bytes


async def test_an_answer_before_the_end_of_the_body_arrives_whole(serve: Serve) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.respond(403, TEXT, b"no")

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n", b"x" * 1_000_000)
        assert (await raw.response())[2] == b"no"
        raw.send(b"x" * 1_000_000)
        assert await raw.rest() == b""


@pytest.mark.parametrize("length", [b"Content-Length: 70000000", b"Transfer-Encoding: chunked"])
async def test_a_body_beyond_the_limit(serve: Serve, length: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cupola_agent.server.http_exchange.MAX_BODY", 1000)

    async def answer(exchange: Exchange) -> None:
        try:
            await exchange.body()
        except BodyTooLargeError:
            exchange.respond(413, (), b"")

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % length, b"3E9\r\n" + b"x" * 1001 + b"\r\n")
        assert (await raw.response())[0] == 413


async def test_a_body_nobody_reads_makes_the_client_wait(serve: Serve) -> None:
    go_on = asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        await go_on.wait()
        sizes = [len(piece) async for piece in exchange.chunks()]
        exchange.respond(200, TEXT, b"%d" % sum(sizes))

    size = 40_000_000
    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size, bytes(size))
        sending = asyncio.create_task(raw.writer.drain())
        _, pending = await asyncio.wait({sending}, timeout=0.5)
        assert pending, "the server took it all"
        go_on.set()
        assert (await raw.response())[2] == b"%d" % size
        await sending


# The client's leaving.


async def test_a_body_that_ends_early(serve: Serve) -> None:
    raised: asyncio.Queue[type[Exception]] = asyncio.Queue()

    async def answer(exchange: Exchange) -> None:
        try:
            if exchange.path == "/body":
                await exchange.body()
            else:
                async for _ in exchange.chunks():
                    continue
        except ClientDisconnectedError as error:
            raised.put_nowait(type(error))

    async with serve(answer) as served:
        for path in (b"/body", b"/chunks"):
            raw = await served.connect()
            raw.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf" % path)
            await raw.writer.drain()
            raw.close()
            assert await asyncio.wait_for(raised.get(), 10) is ClientDisconnectedError


async def test_a_client_that_leaves_is_noticed_while_the_answer_is_pending(serve: Serve) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        exchange.on_disconnect(left.set)
        asked.set()
        await left.wait()
        assert exchange.disconnected
        called: list[int] = []
        exchange.on_disconnect(lambda: called.append(1))
        assert called == [1]
        exchange.start(200, TEXT)
        exchange.write(b"nobody reads this")
        with pytest.raises(ClientDisconnectedError):
            await exchange.drained()
        exchange.finish()

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        await asyncio.wait_for(asked.wait(), 10)
        raw.close()
        await asyncio.wait_for(left.wait(), 10)


async def test_nobody_is_told_of_a_client_that_leaves_after_the_answer(serve: Serve) -> None:
    told: list[int] = []

    async def answer(exchange: Exchange) -> None:
        exchange.on_disconnect(lambda: told.append(1))
        exchange.respond(200, TEXT, b"")

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        await raw.response()
        raw.close()
    assert told == []


async def test_a_client_that_reads_slowly_holds_up_the_writer(serve: Serve) -> None:
    written = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal written
        exchange.start(200, TEXT)
        for _ in range(400):
            exchange.write(bytes(100_000))
            written += 1
            await exchange.drained()
        exchange.finish()

    async with serve(answer) as served:
        raw = await served.connect()
        raw.send(GET)
        await raw.until(b"\r\n\r\n")
        await asyncio.sleep(0.2)
        assert written < 400
        size = 0
        while count := int(await raw.until(b"\r\n"), 16):
            size += count
            await raw.exactly(count + 2)
        assert size == 40_000_000


# Time.


@pytest.mark.parametrize(
    ("limit", "sent", "answer"),
    [
        ("HEAD_SECONDS", b"", b""),
        ("HEAD_SECONDS", b"GET / HT", b"HTTP/1.1 408 "),
        ("IDLE_SECONDS", GET, b"HTTP/1.1 200 "),
        ("BODY_SECONDS", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", b"HTTP/1.1 408 "),
    ],
)
async def test_a_client_that_keeps_silent_is_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes, answer: bytes
) -> None:
    monkeypatch.setattr(f"cupola_agent.server.connection.{limit}", 0.01)
    async with serve() as served:
        raw = await served.connect()
        raw.send(sent)
        assert (await raw.rest()).startswith(answer)
