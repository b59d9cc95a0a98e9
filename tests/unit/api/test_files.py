from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cupola.api import files as module
from cupola.api.files import requested_range
from cupola.domain.errors import CupolaError
from cupola.domain.principal import Principal
from cupola.domain.session import Session
from cupola.sessions import file_transfer
from cupola.sessions.files import SessionFiles
from tests.unit.api.application import Answer, Application, Caller
from tests.unit.sessions.world import BOB, ROOT, World

FILES = "/api/projects/default/agents/echo/endpoint/sessions/session-1/files"
CONTENT = f"{FILES}/content?path="


@pytest.fixture
async def session(world: World) -> Session:
    """A session that never had a sandbox."""
    return await world.session(await world.add())


@pytest.fixture
def home(world: World, session: Session) -> Path:
    return world.directory / "sessions" / session.guid / "home"


async def put(caller: Caller, path: str, content: bytes) -> Answer:
    return await caller.call("PUT", CONTENT + path, content)


async def names(caller: Caller, query: str = "") -> list[str]:
    found = await caller.call("GET", FILES + query)
    assert found.status == 200
    return [entry["name"] for entry in found.json["entries"]]


def on_disk(home: Path) -> dict[str, int]:
    """Names and sizes of what is in a home directory, which need not exist."""
    return {path.name: path.stat().st_size for path in home.iterdir()} if home.exists() else {}


def mode(path: Path) -> int | None:
    return path.stat().st_mode & 0o777 if path.exists() else None


def open_files(below: Path) -> list[str]:
    """Files of a directory that this process has open."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return [link for link in links if link.startswith(str(below))]


# What the SDK asks for


async def test_a_file_is_uploaded_listed_downloaded_and_deleted(ada: Caller, session: Session, home: Path) -> None:
    found = await put(ada, "/remote/data_file1.txt", b"content")
    assert (found.status, found.json) == (201, {"path": "remote/data_file1.txt", "bytes_written": 7})
    assert (home / "remote" / "data_file1.txt").read_bytes() == b"content"
    found = await ada.call("GET", f"{FILES}?path=/remote")
    assert found.status == 200
    entry = found.json["entries"][0]
    assert {name: entry[name] for name in ("name", "size", "is_directory")} == {
        "name": "data_file1.txt",
        "size": 7,
        "is_directory": False,
    }
    assert entry["modified_time"] == int((home / "remote" / "data_file1.txt").stat().st_mtime)
    found = await ada.call("GET", f"{CONTENT}/remote/data_file1.txt")
    assert (found.status, found.body) == (200, b"content")
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-length"] == "7"
    found = await ada.call("DELETE", f"{FILES}?path=/remote&recursive=true")
    assert (found.status, found.body) == (204, b"")
    assert await names(ada) == []


async def test_files_need_no_sandbox_and_start_none(world: World, ada: Caller, session: Session, home: Path) -> None:
    assert mode(home) is None
    assert await names(ada) == []
    assert (await put(ada, "a", b"x")).status == 201
    assert mode(home) == 0o700
    assert await world.sandboxes() == 0


async def test_an_empty_listing_has_no_last_id(ada: Caller, session: Session) -> None:
    found = await ada.call("GET", FILES)
    assert found.json == {
        "object": "list", "path": ".", "entries": [], "first_id": None, "last_id": None, "has_more": False,
    }  # fmt: skip


@pytest.mark.parametrize("order", ["asc", "desc"])
async def test_a_listing_is_paged_by_name(ada: Caller, session: Session, order: str) -> None:
    expected = [f"{number:02}" for number in range(45)]
    for name in expected:
        await put(ada, f"d/{name}", b"")
    found: list[str] = []
    query = f"?path=d&order={order}"
    while True:
        page = (await ada.call("GET", f"{FILES}{query}&limit=10&after={found[-1] if found else ''}")).json
        page_names = [entry["name"] for entry in page["entries"]]
        assert page["first_id"] == page_names[0]
        found += page_names
        if page["last_id"] is None:
            break
        assert page["last_id"] == page_names[-1]
        assert page["has_more"]
    assert found == (expected if order == "asc" else expected[::-1])
    assert len(await names(ada, query)) == 20
    assert await names(ada, "?path=d&after=10&before=13") == ["11", "12"]


async def test_a_directory_is_made_as_azd_asks_and_by_the_query(ada: Caller, session: Session) -> None:
    found = await ada.call("POST", f"{FILES}/mkdir?api-version=v1", {"path": "/a/b"})
    assert found.status == 201
    assert {name: found.json[name] for name in ("name", "path", "size", "is_directory", "is_dir")} == {
        "name": "b", "path": "a/b", "size": 0, "is_directory": True, "is_dir": True,
    }  # fmt: skip
    assert (await ada.call("POST", f"{FILES}/mkdir", {"path": "a/b"})).status == 200
    assert (await ada.call("POST", f"{FILES}/mkdir?path=c")).status == 201
    assert await names(ada) == ["a", "c"]


async def test_stat_is_an_entry_and_its_path(ada: Caller, session: Session) -> None:
    await put(ada, "d/a.txt", b"12345")
    found = (await ada.call("GET", f"{FILES}/stat?path=/d//a.txt")).json
    assert set(found) == {"name", "path", "size", "is_directory", "is_dir", "modified_time", "mode"}
    assert (found["name"], found["path"], found["size"], found["is_dir"]) == ("a.txt", "d/a.txt", 5, False)
    found = (await ada.call("GET", f"{FILES}/stat?path=.")).json
    assert (found["name"], found["path"], found["is_directory"]) == (".", ".", True)


# What is refused


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "%2e%2e/x", "/..", "a%00b", "a%2f..%2fb", "x" * 256])
async def test_a_path_that_leads_out_of_home_is_refused(ada: Caller, session: Session, path: str) -> None:
    for method, address in (
        ("PUT", CONTENT + path),
        ("GET", CONTENT + path),
        ("GET", f"{FILES}?path={path}"),
        ("GET", f"{FILES}/stat?path={path}"),
        ("DELETE", f"{FILES}?recursive=true&path={path}"),
        ("POST", f"{FILES}/mkdir?path={path}"),
    ):
        found = await ada.call(method, address)
        assert (found.error, found.json["error"]["param"]) == ((400, "bad_request"), "path")


@pytest.mark.parametrize(
    ("method", "address"),
    [
        ("PUT", f"{FILES}/content"),
        ("GET", f"{FILES}/content?path="),
        ("DELETE", FILES),
        ("GET", f"{FILES}/stat"),
        ("POST", f"{FILES}/mkdir"),
    ],
)
async def test_a_path_that_is_needed_is_asked_for(ada: Caller, session: Session, method: str, address: str) -> None:
    found = await ada.call(method, address)
    assert (found.error, found.json["error"]["param"]) == ((400, "bad_request"), "path")


@pytest.mark.parametrize("body", [{"path": 7}, {"path": None}, {"path": ["a"]}, [], b"{"])
async def test_a_body_that_names_no_directory_is_refused(ada: Caller, session: Session, body: object) -> None:
    assert (await ada.call("POST", f"{FILES}/mkdir", body)).error == (400, "bad_request")


@pytest.mark.parametrize(
    ("method", "query", "param"),
    [
        ("GET", "?limit=0", "limit"),
        ("GET", "?limit=101", "limit"),
        ("GET", "?order=name", "order"),
        ("DELETE", "?path=a&recursive=perhaps", "recursive"),
    ],
)
async def test_a_query_that_cannot_be_is_refused(
    ada: Caller, session: Session, method: str, query: str, param: str
) -> None:
    found = await ada.call(method, FILES + query)
    assert (found.error, found.json["error"]["param"]) == ((400, "bad_request"), param)


async def test_what_does_not_exist_is_not_found(ada: Caller, session: Session) -> None:
    for method, address in (
        ("GET", f"{CONTENT}a"),
        ("GET", f"{FILES}?path=a"),
        ("GET", f"{FILES}/stat?path=a"),
        ("DELETE", f"{FILES}?path=a"),
    ):
        assert (await ada.call(method, address)).error == (404, "not_found")
    for address in (FILES.replace("session-1", "session-2"), FILES.replace("session-1", "@newest1")):
        assert (await ada.call("GET", address)).error == (404, "session_not_found")
    assert (await ada.call("GET", FILES.replace("echo", "nothing"))).error == (404, "not_found")


async def test_a_directory_that_is_not_empty_is_kept_unless_asked(ada: Caller, session: Session) -> None:
    await put(ada, "d/a", b"")
    for query in ("path=d", "path=d&recursive=false", "path=d&recursive=False"):
        assert (await ada.call("DELETE", f"{FILES}?{query}")).error == (409, "conflict")
    assert (await ada.call("DELETE", f"{FILES}?path=d&recursive=True")).status == 204
    assert (await ada.call("DELETE", f"{FILES}?path=d&recursive=true")).error == (404, "not_found")


async def test_no_refusal_asks_to_be_repeated(ada: Caller, session: Session, home: Path) -> None:
    await put(ada, "d/a", b"")
    (home / "link").symlink_to("/etc")
    for method, path in (("DELETE", "?path=d"), ("GET", "?path=link"), ("GET", "/content?path=link/passwd")):
        found = await ada.call(method, FILES + path)
        assert 400 <= found.status < 500
        assert "retry-after" not in found.headers


async def test_files_of_someone_else_are_not_there(ada: Caller, application: Application, session: Session) -> None:
    await put(ada, "a", b"x")
    bob = application.caller(BOB)
    for method, address in (
        ("GET", FILES), ("GET", f"{CONTENT}a"), ("PUT", f"{CONTENT}a"), ("DELETE", f"{FILES}?path=a"),
        ("GET", f"{FILES}/stat?path=a"), ("POST", f"{FILES}/mkdir?path=b"),
    ):  # fmt: skip
        assert (await bob.call(method, address)).error == (404, "session_not_found")
    assert await names(application.caller(ROOT)) == ["a"]


async def test_a_service_sees_the_files_of_the_user_it_acts_for(
    world: World, application: Application, session: Session
) -> None:
    version = await world.add("other")
    owner = Principal("user:alice", "alice", administrator=False)
    await world.session(version, "session-1", owner)
    service, address = application.caller(ROOT), FILES.replace("echo", "other")
    for identity, status in (("alice", 200), ("bob", 404), ("user:alice", 404), ("al ice", 400)):
        found = await service.call("GET", address, headers=[(b"x-ms-user-identity", identity.encode())])
        assert found.status == status
    found = await application.caller(BOB).call("GET", address, headers=[(b"x-ms-user-identity", b"alice")])
    assert found.error == (403, "impersonation_not_allowed")


# Uploads


async def test_an_upload_is_written_as_it_comes(ada: Caller, session: Session, home: Path) -> None:
    exchange = ada.open("PUT", f"{CONTENT}a")
    exchange.send(b"first ", more=True)
    async with asyncio.timeout(20):
        while list(on_disk(home).values()) != [6]:
            await asyncio.sleep(0.001)
    assert await names(ada) == []
    exchange.send(b"second")
    assert (await exchange.answer()).json["bytes_written"] == 12
    assert on_disk(home) == {"a": 12}


async def test_an_upload_that_the_client_breaks_off_leaves_nothing(ada: Caller, session: Session, home: Path) -> None:
    exchange = ada.open("PUT", f"{CONTENT}a")
    exchange.send(b"first ", more=True)
    async with asyncio.timeout(20):
        while not on_disk(home):
            await asyncio.sleep(0.001)
    exchange.leave()
    await asyncio.wait_for(exchange.task, 20)
    assert on_disk(home) == {}
    assert open_files(home) == []


@pytest.mark.parametrize("step", ["open", "write", "finish"])
async def test_an_upload_that_is_cancelled_leaves_nothing(
    ada: Caller, session: Session, home: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    original: Callable[..., Any] = getattr(file_transfer.Upload, step)

    def slow(*arguments: object) -> Any:
        entered.set()
        assert go_on.wait(20)
        return original(*arguments)

    monkeypatch.setattr(file_transfer.Upload, step, slow)
    exchange = ada.open("PUT", f"{CONTENT}a")
    exchange.send(b"content")
    assert await asyncio.to_thread(entered.wait, 20)
    exchange.task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await exchange.task
    assert list(on_disk(home)) == (["a"] if step == "finish" else [])
    assert open_files(home) == []


async def test_an_upload_that_stops_coming_is_given_up(
    ada: Caller, session: Session, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPLOAD_PAUSE", 0.01)
    exchange = ada.open("PUT", f"{CONTENT}a")
    exchange.send(b"first ", more=True)
    assert (await exchange.answer()).error == (408, "request_timeout")
    assert on_disk(home) == {}


@pytest.mark.parametrize("announced", [True, False])
async def test_an_upload_of_more_than_50_mb_is_refused(
    ada: Caller, session: Session, home: Path, announced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 50 * 1024 * 1024
    headers = [(b"content-length", str(limit + 1).encode())] if announced else []
    exchange = ada.open("PUT", f"{CONTENT}a", headers)
    if not announced:
        for _ in range(50):
            exchange.send(bytes(1024 * 1024), more=True)
        exchange.send(b"x", more=True)
    found = await exchange.answer()
    assert found.error == (413, "payload_too_large")
    assert "50 MiB" in found.message
    assert on_disk(home) == {}


async def test_an_upload_of_50_mb_is_taken(ada: Caller, session: Session, home: Path) -> None:
    exchange = ada.open("PUT", f"{CONTENT}a", [(b"content-length", b"52428800")])
    for number in range(50):
        exchange.send(bytes(1024 * 1024), more=number < 49)
    assert (await exchange.answer()).status == 201
    assert (home / "a").stat().st_size == 52_428_800


# Downloads


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-3", "0-3"),
        ("bytes=4-", "4-9"),
        ("bytes=-3", "7-9"),
        ("bytes=-30", "0-9"),
        ("bytes=9-9", "9-9"),
        ("bytes=5-1000", "5-9"),
        ("Bytes=1-2", "1-2"),
    ],
)
async def test_a_range_of_a_file_is_answered_alone(ada: Caller, session: Session, header: str, expected: str) -> None:
    await put(ada, "a", b"0123456789")
    found = await ada.call("GET", f"{CONTENT}a", headers=[(b"range", header.encode())])
    first, last = map(int, expected.split("-"))
    assert (found.status, found.body) == (206, b"0123456789"[first : last + 1])
    assert found.headers["content-range"] == f"bytes {expected}/10"
    assert found.headers["content-length"] == str(len(found.body))


@pytest.mark.parametrize(
    "header",
    [
        "",
        "bytes",
        "bytes=-",
        "bytes=a-b",
        "bytes=3-2",
        "lines=0-1",
        "bytes=0-1,4-5",
        "bytes=--1",
        "bytes=\u0661-\u0662",
    ],
)
async def test_a_range_that_means_nothing_is_ignored(ada: Caller, session: Session, header: str) -> None:
    await put(ada, "a", b"0123456789")
    found = await ada.call("GET", f"{CONTENT}a", headers=[(b"range", header.encode())])
    assert (found.status, found.body) == (200, b"0123456789")
    assert found.headers["accept-ranges"] == "bytes"


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0", "bytes=9999999999999999999-"])
async def test_a_range_outside_of_the_file_is_refused(ada: Caller, session: Session, home: Path, header: str) -> None:
    await put(ada, "a", b"0123456789")
    found = await ada.call("GET", f"{CONTENT}a", headers=[(b"range", header.encode())])
    assert found.error == (416, "range_not_satisfiable")
    assert found.headers["content-range"] == "bytes */10"
    assert open_files(home) == []


async def test_a_range_of_an_older_file_is_not_mixed_with_this_one(ada: Caller, session: Session) -> None:
    await put(ada, "a", b"0123456789")
    headers = [(b"range", b"bytes=5-"), (b"if-range", b'"an-older-one"')]
    assert (await ada.call("GET", f"{CONTENT}a", headers=headers)).status == 200


def test_ranges_of_the_largest_files() -> None:
    size = 2**63 - 1
    assert requested_range("bytes=-1", size) == range(size - 1, size)
    assert len(requested_range("bytes=0-", size) or ()) == size
    assert requested_range("bytes=0-0", 0) == range(0)


async def test_the_head_of_a_file_has_its_length_and_no_body(ada: Caller, session: Session, home: Path) -> None:
    await put(ada, "a", b"0123456789")
    found = await ada.call("HEAD", f"{CONTENT}a", headers=[(b"range", b"bytes=0-1")])
    assert (found.status, found.body, found.headers["content-length"]) == (200, b"", "10")
    assert open_files(home) == []


async def test_a_terabyte_is_read_by_range(ada: Caller, session: Session, home: Path) -> None:
    await put(ada, "huge", b"")
    os.truncate(home / "huge", 1 << 40)
    headers = [(b"range", b"bytes=549755813888-549755813897")]
    found = await ada.call("GET", f"{CONTENT}huge", headers=headers)
    assert (found.status, found.body) == (206, bytes(10))
    assert found.headers["content-range"] == f"bytes 549755813888-549755813897/{1 << 40}"


async def test_a_download_that_nobody_reads_any_more_ends(ada: Caller, session: Session, home: Path) -> None:
    await put(ada, "huge", b"")
    os.truncate(home / "huge", 1 << 40)
    exchange = ada.open("GET", f"{CONTENT}huge")
    assert (await exchange.head())[0] == 200
    assert len(await exchange.chunk() or b"") == module.PIECE
    exchange.leave()
    await asyncio.wait_for(exchange.task, 20)
    assert open_files(home) == []


async def test_a_file_that_becomes_shorter_breaks_the_download_off(
    ada: Caller, session: Session, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", 4)
    await put(ada, "a", b"0123456789")
    read = file_transfer.Download.read

    def shrinking(download: file_transfer.Download, offset: int, size: int) -> bytes:
        if offset:
            os.truncate(home / "a", 2)
        return read(download, offset, size)

    monkeypatch.setattr(file_transfer.Download, "read", shrinking)
    exchange = ada.open("GET", f"{CONTENT}a")
    await exchange.head()
    assert await exchange.chunk() == b"0123"
    with pytest.raises(CupolaError, match="became shorter"):
        await exchange.chunk()
    assert open_files(home) == []


# Removals


async def test_a_large_removal_gives_others_their_turn(
    ada: Caller, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMOVAL_SLICE", 0.0005)
    for number in range(30):
        await put(ada, f"d/{number}/a", b"")
    assert (await ada.call("DELETE", f"{FILES}?path=d&recursive=true")).status == 204
    assert await names(ada) == []


async def test_a_removal_that_never_ends_is_given_up(
    ada: Caller, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMOVAL_LIMIT", 0.01)
    monkeypatch.setattr(SessionFiles, "remove", lambda *_: False)
    found = await ada.call("DELETE", f"{FILES}?path=d&recursive=true")
    assert found.error == (409, "conflict")


async def test_a_directory_that_vanishes_while_it_is_removed_is_removed(
    ada: Caller, session: Session, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(ada, "d", b"")
    remove = SessionFiles.remove
    first = iter([True])

    def vanishing(files: SessionFiles, path: tuple[bytes, ...], recursive: bool, seconds: float) -> bool:
        if next(first, False):
            (home / "d").unlink()
            return False
        return remove(files, path, recursive, seconds)

    monkeypatch.setattr(SessionFiles, "remove", vanishing)
    assert (await ada.call("DELETE", f"{FILES}?path=d&recursive=true")).status == 204


# Names


@pytest.mark.parametrize(
    "name", [b"\x1b[31m", b"\n\r", b"\x9b1m", b"\xc2\x9b", "\u202e\u2028".encode(), b"\xff", b'"\\']
)
async def test_a_name_that_an_agent_made_is_escaped_and_can_be_used(
    ada: Caller, session: Session, home: Path, name: bytes
) -> None:
    await names(ada)
    (home / os.fsdecode(name)).write_bytes(b"hers")
    found = await ada.call("GET", FILES)
    assert all(0x20 <= byte < 0x7F for byte in found.body)
    shown = json.loads(found.body)["entries"][0]["name"]
    quoted = "".join(f"%{byte:02X}" for byte in shown.encode())
    assert (await ada.call("GET", CONTENT + quoted)).body == b"hers"
    assert (await ada.call("GET", f"{FILES}/stat?path={quoted}")).json["name"] == shown
    assert (await ada.call("DELETE", f"{FILES}?path={quoted}")).status == 204
    assert on_disk(home) == {}
