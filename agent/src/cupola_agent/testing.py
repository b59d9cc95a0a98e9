"""Calls an agent in-process, without a socket: `await TestClient(agent).post("/responses", json={...})`."""

import asyncio
import json as jsonlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cupola_agent.app import Agent
from cupola_agent.asgi import Message, Scope


@dataclass(frozen=True, slots=True)
class TestResponse:
    """A complete answer. `chunks` are the pieces of the body as they were sent."""

    __test__ = False

    status: int
    headers: Mapping[str, str]
    chunks: tuple[bytes, ...]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return jsonlib.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        """The server-sent events of the body as (event, data)."""
        return [parse_event(frame) for frame in self.text.split("\n\n") if frame]


class TestStream:
    """An answer that is being received. `chunks` gives the pieces of its body as they arrive."""

    __test__ = False

    def __init__(self, exchange: "_Exchange") -> None:
        self._exchange = exchange
        self.status = exchange.status
        self.headers = exchange.headers

    async def chunks(self) -> AsyncIterator[bytes]:
        """The rest of the body. Raises ConnectionError when the answer breaks off."""
        while True:
            message = await self._exchange.next_message()
            if message.get("body"):
                yield message["body"]
            if not message.get("more_body", False):
                return

    async def events(self) -> AsyncIterator[tuple[str, Any]]:
        """The server-sent events to come, as (event, data)."""
        async for chunk in self.chunks():
            yield parse_event(chunk.decode().removesuffix("\n\n"))


class TestClient:
    """Sends requests to an agent. As a context manager it also starts and stops the agent."""

    __test__ = False

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    async def __aenter__(self) -> Self:
        await self._lifespan("lifespan.startup")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifespan("lifespan.shutdown")

    async def get(self, path: str, *, headers: Mapping[str, str] | None = None) -> TestResponse:
        return await self.request("GET", path, headers=headers)

    async def delete(self, path: str, *, headers: Mapping[str, str] | None = None) -> TestResponse:
        return await self.request("DELETE", path, headers=headers)

    async def post(
        self, path: str, *, json: Any = None, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        return await self.request("POST", path, json=json, content=content, headers=headers)

    async def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> TestResponse:
        """The complete answer. Raises ConnectionError when it breaks off."""
        async with self.stream(method, path, json=json, content=content, headers=headers) as stream:
            chunks = [chunk async for chunk in stream.chunks()]
            return TestResponse(stream.status, stream.headers, tuple(chunks))

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[TestStream]:
        """The answer from its head on. Leaving the block before its end disconnects the client."""
        sent = {name.lower(): value for name, value in (headers or {}).items()}
        if json is not None:
            content = jsonlib.dumps(json).encode()
            sent.setdefault("content-type", "application/json")
        target, _, query = path.partition("?")
        scope: Scope = {
            "type": "http",
            "method": method,
            "path": target,
            "query_string": query.encode(),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()],
        }
        exchange = _Exchange(self._agent, scope, content)
        try:
            await exchange.head()
            yield TestStream(exchange)
        finally:
            await exchange.close()

    async def _lifespan(self, kind: str) -> None:
        sent: list[Message] = []
        received = iter(({"type": kind}, {"type": "lifespan.shutdown"}))

        async def receive() -> Message:
            return next(received)

        async def send(message: Message) -> None:
            sent.append(message)

        await self._agent({"type": "lifespan"}, receive, send)
        if sent[0]["type"] != f"{kind}.complete":
            raise RuntimeError(f"{kind} failed: {sent[0].get('message', '')}")


class _Exchange:
    """One request and its answer, with the agent running in a task of its own."""

    def __init__(self, agent: Agent, scope: Scope, content: bytes) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._content: bytes | None = content
        self._gone = asyncio.Event()
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(agent, scope))

    async def _run(self, agent: Agent, scope: Scope) -> None:
        try:
            await agent(scope, self._receive, self._messages.put)
        finally:
            await self._messages.put({"type": "end"})

    async def _receive(self) -> Message:
        if self._content is not None:
            content, self._content = self._content, None
            return {"type": "http.request", "body": content, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def head(self) -> None:
        message = await self.next_message()
        self.status = message["status"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}

    async def next_message(self) -> Message:
        message = await self._messages.get()
        if message["type"] == "end":
            await self._task
            raise ConnectionError("the answer broke off")
        return message

    async def close(self) -> None:
        self._gone.set()
        await self._task


def parse_event(frame: str) -> tuple[str, Any]:
    """One server-sent event as (event, data). Raises ValueError when it has another shape."""
    event, data = frame.split("\n")
    if not event.startswith("event: ") or not data.startswith("data: "):
        raise ValueError(f"not an event: {frame!r}")
    return event.removeprefix("event: "), jsonlib.loads(data.removeprefix("data: "))
