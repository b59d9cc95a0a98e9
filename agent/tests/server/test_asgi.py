"""ASGI both ways: any app under this server, and an application of this server under another."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httptools
import pytest
from cupola_agent.asgi import serve_asgi
from cupola_agent.exchange import ClientDisconnectedError, Exchange, Socket, SocketClosedError
from cupola_agent.server.asgi_host import AsgiHost
from cupola_agent.server.serve import Server, StartFailedError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

TEXT = ((b"content-type", b"text/plain"),)


class Application:
    """An application of ours; notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.answering: Callable[[Exchange], Awaitable[None]] | None = None

    async def start(self) -> None:
        self.told.append("start")

    def drain(self) -> None:
        self.told.append("drain")

    async def stop(self) -> None:
        self.told.append("stop")

    async def answer(self, exchange: Exchange) -> None:
        if self.answering is not None:
            await self.answering(exchange)
        elif exchange.path == "/stream":
            exchange.start(200, TEXT)
            async for piece in exchange.chunks():
                exchange.write(piece)
                await exchange.drained()
            exchange.finish()
        else:
            text = f"{exchange.method} {exchange.path} {exchange.query_string.decode()} ".encode()
            exchange.respond(200, (*TEXT, (b"content-length", b"1")), text + await exchange.body())

    async def talk(self, socket: Socket) -> None:
        if socket.path == "/refused":
            await socket.reject(403)
            return
        await socket.accept([(b"x-own", b"1")])
        try:
            while (message := await socket.receive()) != "fail":
                await socket.send(message)
        except SocketClosedError as closed:
            self.told.append(f"closed {closed.code}")
            return
        raise ValueError("private")


def mounted(application: Application) -> Starlette:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await serve_asgi(application, scope, receive, send)

    return Starlette(routes=[Mount("/agent", app=asgi)])


@pytest.fixture
def application() -> Application:
    return Application()


Listening = Callable[..., Any]


@pytest.fixture
def listening() -> Listening:
    """Serves an ASGI app by the library's server; gives the port."""

    @asynccontextmanager
    async def serve(app: Any) -> Any:
        import socket

        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        server = Server(AsgiHost(app), grace_seconds=0)
        await server.start([listener])
        try:
            yield listener.getsockname()[1]
        finally:
            hurry = asyncio.Event()
            hurry.set()
            await server.stop(hurry)

    return serve


async def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.replace(b"\r\n\r\n", b"\r\nHost: a\r\nConnection: close\r\n\r\n", 1))
    parts: list[bytes] = []

    class Sink:
        def on_body(self, body: bytes) -> None:
            parts.append(body)

    parser = httptools.HttpResponseParser(Sink())
    async with asyncio.timeout(20):
        while data := await reader.read(65536):
            parser.feed_data(data)
    writer.close()
    return parser.get_status_code(), b"".join(parts)


async def test_a_starlette_app_by_this_server(listening: Listening) -> None:
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        told.append("start")
        yield {"shared": "state"}
        told.append("stop")

    async def plain(request: Request) -> PlainTextResponse:
        assert request.client is not None
        body = (await request.body()).decode()
        return PlainTextResponse(
            f"{request.method} {request.url.path} {request.query_params} {body} {request.state.shared}"
        )

    async def stream(_: Request) -> StreamingResponse:
        async def pieces() -> Any:
            for number in range(3):
                yield f"{number}"
                await asyncio.sleep(0)

        return StreamingResponse(pieces())

    async def fail(_: Request) -> PlainTextResponse:
        raise ValueError("private")

    async def talk(socket: WebSocket) -> None:
        await socket.accept(subprotocol=socket.scope["subprotocols"][0])
        try:
            while True:
                await socket.send_text((await socket.receive_text()) + "!")
        except WebSocketDisconnect as closed:
            told.append(f"closed {closed.code}")

    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/plain", plain, methods=["GET", "POST"]),
            Route("/stream", stream),
            Route("/fail", fail),
            WebSocketRoute("/ws", talk),
        ],
    )
    async with listening(app) as port:
        assert told == ["start"]
        assert await ask(port, b"POST /plain?a=1 HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi") == (
            200,
            b"POST /plain a=1 hi state",
        )
        assert await ask(port, b"HEAD /plain HTTP/1.1\r\n\r\n") == (200, b"")
        assert await ask(port, b"GET /stream HTTP/1.1\r\n\r\n") == (200, b"012")
        assert await ask(port, b"GET /none HTTP/1.1\r\n\r\n") == (404, b"Not Found")
        assert await ask(port, b"GET /fail HTTP/1.1\r\n\r\n") == (500, b"Internal Server Error")
        async with connect(f"ws://127.0.0.1:{port}/ws", subprotocols=["one"]) as client:  # type: ignore[list-item]
            await client.send("hi")
            assert (await client.recv(), client.subprotocol) == ("hi!", "one")
            await client.close(4001)
        with pytest.raises(InvalidStatus):
            await connect(f"ws://127.0.0.1:{port}/none")
    assert told == ["start", "closed 4001", "stop"]


async def test_an_app_without_lifespan_serves_all_the_same(listening: Listening) -> None:
    async def app(scope: Any, _: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async with listening(app) as port:
        assert await ask(port, b"GET / HTTP/1.1\r\n\r\n") == (204, b"")


async def test_an_app_that_fails_to_start_says_why() -> None:
    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no key"})

    with pytest.raises(StartFailedError, match="no key"):
        await AsgiHost(app).start()


async def test_an_application_of_ours_mounted_in_starlette(listening: Listening, application: Application) -> None:
    async with listening(mounted(application)) as port:
        assert application.told == []
        assert await ask(port, b"POST /agent/a?b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi") == (200, b"POST /a b hi")
        assert await ask(
            port, b"POST /agent/stream HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n2\r\nbc\r\n0\r\n\r\n"
        ) == (200, b"abc")
        assert await ask(port, b"HEAD /agent/ HTTP/1.1\r\n\r\n") == (200, b"")
        assert application.told == ["start"]


async def test_its_websockets(listening: Listening, application: Application) -> None:
    async with listening(mounted(application)) as port:
        url = f"ws://127.0.0.1:{port}/agent"
        async with connect(f"{url}/ws") as client:
            for message in ("hi", b"\0\xff"):
                await client.send(message)
                assert await client.recv() == message
            assert client.response is not None
            assert client.response.headers["x-own"] == "1"
            await client.close(4001)
        async with connect(f"{url}/ws") as client:
            await client.send("fail")
            with pytest.raises(ConnectionClosed) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{url}/refused")
        assert refused.value.response.status_code == 403
    assert application.told == ["start", "closed 4001"]


async def test_its_lifespan(listening: Listening, application: Application) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await serve_asgi(application, scope, receive, send)

    async with listening(app) as port:
        assert application.told == ["start"]
        assert await ask(port, b"GET / HTTP/1.1\r\n\r\n") == (200, b"GET /  ")
    assert application.told == ["start", "drain", "stop"]


async def test_its_client_leaving(listening: Listening, application: Application) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        exchange.on_disconnect(left.set)
        asked.set()
        await left.wait()
        with pytest.raises(ClientDisconnectedError):
            await exchange.drained()
        exchange.abort()

    application.answering = answer
    async with listening(mounted(application)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /agent/ HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.wait_for(asked.wait(), 10)
        writer.close()
        await asyncio.wait_for(left.wait(), 10)


async def test_its_abort_cuts_the_answer(listening: Listening, application: Application) -> None:
    async def answer(exchange: Exchange) -> None:
        exchange.start(200, TEXT)
        exchange.write(b"part")
        exchange.abort()

    application.answering = answer
    async with listening(mounted(application)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /agent/ HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), 10)).endswith(b"4\r\npart\r\n")
        writer.close()
