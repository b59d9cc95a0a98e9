"""A platform in the test's own process: it speaks HTTP over a socket and keeps what the contract says it keeps.

It serves the response store (contract section 4.12), tasks (4.14), state (4.15) and the token endpoint (3.4), by
handing each call to a store of the library. `faults` makes it answer otherwise, `received` tells what it was asked.
"""

import asyncio
import base64
import re
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httptools
from cupola_agent import jsons
from cupola_agent.call import Caller
from cupola_agent.state.base import Item, ItemKey, StateBackend, StoreInfo, StoreSettings
from cupola_agent.state.local import LocalStateBackend
from cupola_agent.stores.base import RefusedError, ResponseStore, StoreError
from cupola_agent.stores.memory import MemoryResponseStore
from cupola_agent.tasks.base import LeaseRequest, TaskFilter, TaskStore
from cupola_agent.tasks.local import LocalTaskStore

PROJECT = "/api/projects/test"
IDENTITY_SECRET = "the-identity-header"


@dataclass(frozen=True)
class Received:
    """A request as it came in; the body is decoded JSON, None without one."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any

    @property
    def caller(self) -> Caller:
        """The platform knows the user by the call id: tests use ids like `alice:1`."""
        call_id = self.headers.get("x-agent-foundry-call-id", "")
        return Caller(user_id=call_id.partition(":")[0], call_id=call_id)


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    """What to answer instead, to the next `times` requests whose method and path match.

    Without an answer the connection is closed. With `done` the request is carried out first, and its answer lost.
    """

    path: str
    answer: Answer | None = None
    method: str = ""
    times: int = 1
    done: bool = False

    def matches(self, request: Received) -> bool:
        return self.times > 0 and self.path in request.path and self.method in ("", request.method)


@dataclass
class FakePlatform:
    """`issued` are the tokens it takes; `token_seconds` is how long new ones are good for."""

    responses: ResponseStore
    tasks: TaskStore
    state: StateBackend
    port: int = 0
    scheme: str = "http"
    host: str = "127.0.0.1"
    token_seconds: float = 3600
    received: list[Received] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    issued: list[str] = field(default_factory=list)
    now: Callable[[], float] = time.time

    @property
    def endpoint(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}{PROJECT}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that make a container use this platform."""
        return {
            "FOUNDRY_HOSTING_ENVIRONMENT": "test",
            "FOUNDRY_PROJECT_ENDPOINT": self.endpoint,
            "IDENTITY_ENDPOINT": f"{self.scheme}://{self.host}:{self.port}/identity/token",
            "IDENTITY_HEADER": IDENTITY_SECRET,
        }

    def calls(self, path: str) -> list[Received]:
        """The requests below the project whose path contains this."""
        return [request for request in self.received if request.path.startswith(PROJECT) and path in request.path]

    async def answer(self, request: Received) -> Answer | None:
        """The answer, or None to close the connection."""
        self.received.append(request)
        fault = next((fault for fault in self.faults if fault.matches(request)), None)
        if fault is not None:
            fault.times -= 1
            if fault.done:
                await self._true_answer(request)
            return fault.answer
        return await self._true_answer(request)

    async def _true_answer(self, request: Received) -> Answer:
        if request.path == "/identity/token":
            return self._token(request)
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.issued:
            return _error(401, "unauthorized", "No good token.")
        if request.query.get("api-version") != "v1" or not request.path.startswith(PROJECT):
            return _error(404, "not_found", "No such path.")
        try:
            for method, pattern, serve in ROUTES:
                match = re.fullmatch(PROJECT + pattern, request.path)
                if match and method == request.method:
                    return await serve(self, request, *match.groups())
        except StoreError as error:
            etag = getattr(error, "etag", None)
            headers = {"etag": etag} if etag else {}
            return Answer(error.status, {"error": _envelope(error)}, headers)
        return _error(404, "not_found", "No such path.")

    def _token(self, request: Received) -> Answer:
        if request.headers.get("x-identity-header") != IDENTITY_SECRET:
            return _error(401, "unauthorized", "No good identity header.")
        if request.query != {"api-version": "2019-08-01", "resource": "https://ai.azure.com"}:
            return _error(400, "invalid_request", "No such resource.")
        self.issued.append(f"token-{len(self.issued)}")
        expires_on = str(int(self.now() + self.token_seconds))
        return Answer(200, {"access_token": self.issued[-1], "expires_on": expires_on, "token_type": "Bearer"})


@asynccontextmanager
async def running_platform(
    folder: Path, *, responses: ResponseStore | None = None, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[FakePlatform, None]:
    """A platform that keeps responses in memory, and tasks and state in files in the folder."""
    platform = FakePlatform(responses or MemoryResponseStore(), LocalTaskStore(folder), LocalStateBackend(folder))
    if tls is not None:
        platform.scheme, platform.host = "https", "localhost"
    connections: set[_Connection] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(platform, connections), "127.0.0.1", 0, ssl=tls
    )
    platform.port = server.sockets[0].getsockname()[1]
    try:
        yield platform
    finally:
        server.close()
        for connection in list(connections):
            await connection.end()
        await server.wait_closed()
        for store in (platform.responses, platform.tasks, platform.state):
            await store.close()


class _Connection(asyncio.Protocol):
    """One client; its requests are answered one after the other."""

    def __init__(self, platform: FakePlatform, connections: "set[_Connection]") -> None:
        self._platform = platform
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._requests: asyncio.Queue[Received] = asyncio.Queue()
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._worker = asyncio.create_task(self._serve())
        self._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._worker.cancel()
        self._connections.discard(self)

    async def end(self) -> None:
        self._transport.abort()
        self._worker.cancel()
        await asyncio.wait((self._worker,))

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._headers, self._body = b"", {}, bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        parts = urlsplit(self._url.decode())
        body = jsons.decode(bytes(self._body)) if self._body else None
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        method = self._parser.get_method().decode()
        self._requests.put_nowait(Received(method, parts.path, query, self._headers, body))

    async def _serve(self) -> None:
        while True:
            answer = await self._platform.answer(await self._requests.get())
            if answer is None:
                self._transport.abort()
                return
            body = b"" if answer.body is None else jsons.encode(answer.body)
            headers = {"content-type": "application/json", "content-length": str(len(body)), **answer.headers}
            head = f"HTTP/1.1 {answer.status} x\r\n" + "".join(f"{key}: {text}\r\n" for key, text in headers.items())
            self._transport.write(head.encode() + b"\r\n" + body)


def _error(status: int, code: str, message: str) -> Answer:
    return Answer(status, {"error": {"code": code, "message": message, "param": None}})


def _envelope(error: StoreError) -> dict[str, str | None]:
    return {"code": error.code, "message": error.message, "param": error.param}


def _integer(request: Received, name: str, default: int) -> int:
    try:
        return int(request.query.get(name, default))
    except ValueError:
        raise RefusedError(f"{name} must be an integer", param=name) from None


# Responses


async def _create_response(platform: FakePlatform, request: Received) -> Answer:
    fields = request.body
    await platform.responses.create(
        fields["response"], fields["input_items"], fields["history_item_ids"], request.caller
    )
    return Answer(201)


async def _update_response(platform: FakePlatform, request: Received, response_id: str) -> Answer:
    if request.body.get("id") != unquote(response_id):
        raise RefusedError("The id of the response is not that of the path.")
    await platform.responses.update(request.body, request.caller)
    return Answer(200)


async def _get_response(platform: FakePlatform, request: Received, response_id: str) -> Answer:
    return Answer(200, await platform.responses.get(unquote(response_id), request.caller))


async def _delete_response(platform: FakePlatform, request: Received, response_id: str) -> Answer:
    await platform.responses.delete(unquote(response_id), request.caller)
    return Answer(204)


async def _input_items(platform: FakePlatform, request: Received, response_id: str) -> Answer:
    limit = _integer(request, "limit", 20)
    if not 1 <= limit <= 100:
        raise RefusedError("limit must be from 1 to 100", param="limit")
    page = await platform.responses.input_items(
        unquote(response_id),
        request.caller,
        limit=limit,
        ascending=request.query.get("order") == "asc",
        after=request.query.get("after"),
        before=request.query.get("before"),
    )
    return Answer(200, {"data": list(page.items)})


async def _retrieve_items(platform: FakePlatform, request: Received) -> Answer:
    return Answer(200, await platform.responses.items(request.body["item_ids"], request.caller))


async def _history(platform: FakePlatform, request: Received) -> Answer:
    ids = await platform.responses.history_item_ids(
        request.caller,
        previous_response_id=request.query.get("previous_response_id"),
        conversation_id=request.query.get("conversation_id"),
        limit=_integer(request, "limit", -1),
    )
    return Answer(200, ids)


# Tasks


def _lease(request: Received) -> LeaseRequest | None:
    names = ("lease_owner", "lease_instance_id", "lease_duration_seconds")
    given = [name for name in names if request.query.get(name)]
    if not given:
        return None
    if len(given) < len(names):
        raise RefusedError("A lease needs an owner, an instance and a duration.")
    owner, instance, _ = (request.query[name] for name in names)
    return LeaseRequest(owner, instance, _integer(request, "lease_duration_seconds", 0))


async def _create_task(platform: FakePlatform, request: Received) -> Answer:
    return Answer(201, (await platform.tasks.create(request.body, _lease(request))).to_json())


async def _get_task(platform: FakePlatform, request: Received, task_id: str) -> Answer:
    return Answer(200, (await platform.tasks.get(unquote(task_id))).to_json())


async def _update_task(platform: FakePlatform, request: Received, task_id: str) -> Answer:
    task = await platform.tasks.update(
        unquote(task_id), request.body, _lease(request), if_match=request.headers.get("if-match")
    )
    return Answer(200, task.to_json())


async def _delete_task(platform: FakePlatform, request: Received, task_id: str) -> Answer:
    force = request.query.get("force") == "true"
    await platform.tasks.delete(unquote(task_id), force=force, if_match=request.headers.get("if-match"))
    return Answer(204)


async def _list_tasks(platform: FakePlatform, request: Received) -> Answer:
    query = request.query
    flags = {name: None if name not in query else query[name] == "true" for name in ("has_error", "lease_expired")}
    names = ("agent_name", "session_id", "status", "lease_owner", "source_type")
    tags = {name.removeprefix("tag."): value for name, value in query.items() if name.startswith("tag.")}
    page = await platform.tasks.list(
        TaskFilter(**{name: query.get(name) for name in names}, **flags, tags=tags),  # type: ignore[arg-type]
        limit=_integer(request, "limit", 20),
        after=query.get("after"),
        newest_first=query.get("order", "desc") == "desc",
        omit_attachment_values=query.get("omit_attachment_values") == "true",
    )
    last_id = page.tasks[-1].id if page.tasks else None
    data = [task.to_json() for task in page.tasks]
    return Answer(200, {"object": "list", "data": data, "has_more": page.has_more, "last_id": last_id})


# State


def _plain(segment: str) -> str:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)).decode()


def _store_json(info: StoreInfo) -> dict[str, Any]:
    fields = {name: getattr(info, name) for name in StoreInfo.__slots__}
    return {"object": "state_store", **fields}


def _key_json(key: ItemKey) -> dict[str, Any]:
    return {"object": "state_store.item", **{name: getattr(key, name) for name in ItemKey.__slots__}}


def _item_answer(status: int, item: ItemKey | Item) -> Answer:
    if isinstance(item, Item):
        return Answer(status, {**_key_json(item.key), "value": item.value}, {"etag": item.etag})
    body = {name: value for name, value in _key_json(item).items() if name != "tags"}
    return Answer(status, body, {"etag": item.etag})


def _user(request: Received) -> str | None:
    return request.headers.get("x-ms-user-id")


async def _create_store(platform: FakePlatform, request: Received) -> Answer:
    fields = dict(request.body)
    name = fields.pop("name")
    settings = StoreSettings(**{**fields, "tags": fields.get("tags") or {}})
    return Answer(201, _store_json(await platform.state.create_store(name, settings, request.caller)))


async def _get_store(platform: FakePlatform, request: Received, name: str) -> Answer:
    return Answer(200, _store_json(await platform.state.get_store(_plain(name), request.caller)))


async def _update_store(platform: FakePlatform, request: Received, name: str) -> Answer:
    return Answer(200, _store_json(await platform.state.update_store(_plain(name), request.body, request.caller)))


async def _delete_store(platform: FakePlatform, request: Received, name: str) -> Answer:
    await platform.state.delete_store(_plain(name), request.caller)
    return Answer(200, {"object": "state_store", "name": _plain(name), "deleted": True})


async def _create_item(platform: FakePlatform, request: Received, name: str) -> Answer:
    fields = request.body
    item = await platform.state.create_item(
        _plain(name), fields["key"], fields["value"], fields.get("tags") or {}, request.caller, _user(request)
    )
    return _item_answer(201, item)


async def _put_item(platform: FakePlatform, request: Received, name: str, key: str) -> Answer:
    item = await platform.state.put_item(
        _plain(name),
        _plain(key),
        request.body["value"],
        request.body.get("tags") or {},
        request.caller,
        _user(request),
        request.headers.get("if-match"),
    )
    return _item_answer(200, item)


async def _get_item(platform: FakePlatform, request: Received, name: str, key: str) -> Answer:
    return _item_answer(200, await platform.state.get_item(_plain(name), _plain(key), request.caller, _user(request)))


async def _delete_item(platform: FakePlatform, request: Received, name: str, key: str) -> Answer:
    if_match = request.headers.get("if-match")
    await platform.state.delete_item(_plain(name), _plain(key), request.caller, _user(request), if_match)
    return Answer(200, {"object": "state_store.item", "key": _plain(key), "deleted": True})


async def _list_keys(platform: FakePlatform, request: Received, name: str) -> Answer:
    tags = {tag.removeprefix("tags."): text for tag, text in request.query.items() if tag.startswith("tags.")}
    page = await platform.state.list_keys(
        _plain(name),
        request.caller,
        _user(request),
        tags=tags,
        limit=_integer(request, "limit", 20),
        after=request.query.get("after"),
        newest_first=request.query.get("order", "desc") == "desc",
    )
    keys = [_key_json(key) for key in page.keys]
    return Answer(200, {"object": "list", "data": keys, "has_more": page.has_more})


_SEGMENT = "/([^/]*)"
_STORES = "/storage/state_stores"
ROUTES: tuple[tuple[str, str, Callable[..., Awaitable[Answer]]], ...] = (
    ("POST", "/storage/responses", _create_response),
    ("POST", f"/storage/responses{_SEGMENT}", _update_response),
    ("GET", f"/storage/responses{_SEGMENT}", _get_response),
    ("DELETE", f"/storage/responses{_SEGMENT}", _delete_response),
    ("GET", f"/storage/responses{_SEGMENT}/input_items", _input_items),
    ("POST", "/storage/items/batch/retrieve", _retrieve_items),
    ("GET", "/storage/history/item_ids", _history),
    ("POST", "/tasks", _create_task),
    ("GET", "/tasks", _list_tasks),
    ("GET", f"/tasks{_SEGMENT}", _get_task),
    ("PATCH", f"/tasks{_SEGMENT}", _update_task),
    ("DELETE", f"/tasks{_SEGMENT}", _delete_task),
    ("POST", _STORES, _create_store),
    ("GET", f"{_STORES}{_SEGMENT}", _get_store),
    ("PATCH", f"{_STORES}{_SEGMENT}", _update_store),
    ("DELETE", f"{_STORES}{_SEGMENT}", _delete_store),
    ("POST", f"{_STORES}{_SEGMENT}/items", _create_item),
    ("GET", f"{_STORES}{_SEGMENT}/items:keys", _list_keys),
    ("PUT", f"{_STORES}{_SEGMENT}/items{_SEGMENT}", _put_item),
    ("GET", f"{_STORES}{_SEGMENT}/items{_SEGMENT}", _get_item),
    ("DELETE", f"{_STORES}{_SEGMENT}/items{_SEGMENT}", _delete_item),
)
