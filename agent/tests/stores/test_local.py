"""What only the store in a file promises: it outlives the process, shares the file, and never holds up the loop."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from cupola_agent.call import Caller
from cupola_agent.stores.base import AlreadyExistsError, NotFoundError, UnavailableError
from cupola_agent.stores.local import FILE_NAME, LocalResponseStore
from cupola_agent.stores.sqlite import Database, Schema, state_root

NOBODY = Caller()


def response(response_id: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
    item = {"id": f"item-of-{response_id}", "type": "message", "text": text}
    return {"id": response_id, "status": "completed", "output": [item], **fields}


@pytest.fixture
async def store(tmp_path: Path) -> AsyncGenerator[LocalResponseStore, None]:
    store = LocalResponseStore(tmp_path)
    yield store
    await store.close()


WRITER = """
import asyncio, sys
from pathlib import Path
from cupola_agent.call import Caller
from cupola_agent.stores.local import LocalResponseStore

async def main():
    store = LocalResponseStore(Path(sys.argv[1]))
    async def write(number):
        name = f"{sys.argv[2]}-{number}"
        body = {"id": name, "status": "in_progress", "output": []}
        await store.create(body, [{"id": "in-" + name}], [], Caller("alice"))
        await store.update({**body, "status": "completed", "output": [{"id": "out-" + name}]}, Caller("alice"))
        print(name, flush=True)
    count = int(sys.argv[3])
    for start in range(0, count, 8):
        await asyncio.gather(*(write(number) for number in range(start, start + 8)))
    await store.close()

asyncio.run(main())
"""


def start_writer(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("acknowledged", [1, 50, 400])
async def test_what_was_acknowledged_survives_kill_minus_nine(tmp_path: Path, acknowledged: int) -> None:
    writer = start_writer(tmp_path, "w", 1_000_000)
    assert writer.stdout is not None
    names = [writer.stdout.readline().strip() for _ in range(acknowledged)]
    os.kill(writer.pid, signal.SIGKILL)
    names += writer.stdout.read().split()
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()

    store = LocalResponseStore(tmp_path)
    for name in names:
        found = await store.get(name, Caller("alice"))
        assert (found["status"], found["output"]) == ("completed", [{"id": f"out-{name}"}])
    await store.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file.close()


async def test_several_processes_write_to_one_file(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, f"w{number}", 160) for number in range(3)]
    outputs = await asyncio.gather(*(asyncio.to_thread(writer.communicate) for writer in writers))
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    store = LocalResponseStore(tmp_path)
    for name in " ".join(output for output, _ in outputs).split():
        assert (await store.get(name, Caller("alice")))["status"] == "completed"
    await store.close()


async def test_a_response_is_read_by_the_next_process_and_by_its_user_only(tmp_path: Path) -> None:
    first = LocalResponseStore(tmp_path)
    await first.create(response("r1"), [], [], Caller("alice"))
    await first.close()
    second = LocalResponseStore(tmp_path)
    assert await second.get("r1", Caller("alice")) == response("r1")
    for other in (Caller("bob"), NOBODY):
        with pytest.raises(NotFoundError):
            await second.get("r1", other)
    with pytest.raises(AlreadyExistsError):
        await second.create(response("r1"), [], [], Caller("bob"))
    await second.close()


async def test_a_failed_write_leaves_no_trace_and_others_are_kept(store: LocalResponseStore) -> None:
    await store.create(response("r1"), [], [], NOBODY)
    results = await asyncio.gather(
        store.create(response("r2"), [], [], NOBODY),
        store.create(response("r1", "again"), [{"id": "new"}], [], NOBODY),
        store.create(response("r3"), [], [], NOBODY),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), AlreadyExistsError, type(None)]
    assert await store.get("r1", NOBODY) == response("r1")
    assert await store.items(["new", "item-of-r2", "item-of-r3"], NOBODY) == [
        None,
        *(response(name)["output"][0] for name in ("r2", "r3")),
    ]


async def test_a_read_sees_what_was_asked_to_be_written_just_before(store: LocalResponseStore) -> None:
    for number in range(20):
        name = f"r{number}"
        _, read, _ = await asyncio.gather(
            store.create(response(name), [], [], NOBODY), store.get(name, NOBODY), store.delete(name, NOBODY)
        )
        assert read == response(name)


async def test_old_responses_are_forgotten_with_their_items(tmp_path: Path) -> None:
    now = 1000.0
    store = LocalResponseStore(tmp_path, retention_seconds=10, clock=lambda: now)
    for number in range(120):
        await store.create(response(f"old{number}", conversation="c"), [{"id": f"in{number}"}], [], NOBODY)
    now = 1009.0
    await store.create(response("young", conversation="c"), [], [], NOBODY)
    now = 1010.0
    with pytest.raises(NotFoundError):
        await store.get("old0", NOBODY)
    history = await store.history_item_ids(NOBODY, previous_response_id=None, conversation_id="c")
    assert history == ["item-of-young"]
    assert await store.items(["in0", "item-of-old1"], NOBODY) == [None, None]
    await store.create(response("old0", "anew"), [], [], NOBODY)
    assert await store.get("old0", NOBODY) == response("old0", "anew")
    await store.close()

    store = LocalResponseStore(tmp_path, retention_seconds=10, clock=lambda: now)
    for number in range(3):
        await store.create(response(f"new{number}"), [], [], NOBODY)
    await store.close()
    with sqlite3.connect(tmp_path / FILE_NAME) as file:
        assert file.execute("SELECT count(*) FROM responses").fetchone() == (5,)
        assert file.execute("SELECT count(*) FROM items").fetchone() == (5,)
    file.close()


async def test_the_loop_goes_on_while_the_file_is_locked_by_another(tmp_path: Path) -> None:
    store = LocalResponseStore(tmp_path)
    await store.create(response("r1"), [], [], NOBODY)
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(store.create(response("r2"), [], [], NOBODY))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not write.done()
    other.execute("COMMIT")
    other.close()
    await write
    await store.close()


async def test_a_queue_that_is_full_refuses_instead_of_growing(tmp_path: Path) -> None:
    entered, release = threading.Event(), threading.Event()

    def block(connection: sqlite3.Connection) -> None:
        entered.set()
        release.wait(30)

    database = Database(tmp_path / "x.sqlite", Schema(1, (), lambda connection: False), max_waiting=2)
    first = asyncio.create_task(database.read(block))
    await asyncio.to_thread(entered.wait, 30)
    waiting = [asyncio.create_task(database.read(lambda connection: 7)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError) as busy:
        await database.read(lambda connection: 8)
    assert (busy.value.status, busy.value.code) == (503, "storage_busy")
    release.set()
    await first
    assert await asyncio.gather(*waiting) == [7, 7]
    await database.close()


async def test_a_caller_that_gives_up_does_not_stop_others(store: LocalResponseStore) -> None:
    given_up = asyncio.create_task(store.create(response("r1"), [], [], NOBODY))
    await asyncio.sleep(0)
    given_up.cancel()
    await store.create(response("r2"), [], [], NOBODY)
    assert given_up.cancelled()
    assert await store.get("r2", NOBODY) == response("r2")


async def test_a_closed_store_refuses(tmp_path: Path) -> None:
    store = LocalResponseStore(tmp_path)
    store.open()
    await store.close()
    await store.close()
    with pytest.raises(UnavailableError):
        await store.get("r1", NOBODY)


async def test_what_waits_is_done_before_the_store_is_closed(tmp_path: Path) -> None:
    store = LocalResponseStore(tmp_path)
    writes = [asyncio.create_task(store.create(response(f"r{n}"), [], [], NOBODY)) for n in range(600)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*writes)


async def test_only_this_user_may_read_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "deep"
    store = LocalResponseStore(folder)
    await store.create(response("r1"), [], [], NOBODY)
    assert folder.stat().st_mode & 0o077 == 0
    assert {path.stat().st_mode & 0o177 for path in folder.iterdir()} == {0}
    await store.close()


async def test_a_folder_that_cannot_be_written_is_named_and_works_once_it_can(tmp_path: Path) -> None:
    blocked = tmp_path / "state"
    blocked.write_text("a file, where a folder should be")
    store = LocalResponseStore(blocked)
    with pytest.raises(UnavailableError, match=FILE_NAME) as failed:
        await store.create(response("r1"), [], [], NOBODY)
    assert failed.value.source == "platform"
    blocked.unlink()
    await store.create(response("r1"), [], [], NOBODY)
    await store.close()


async def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(b"notes of somebody else" * 100)
    store = LocalResponseStore(tmp_path)
    with pytest.raises(UnavailableError):
        await store.create(response("r1"), [], [], NOBODY)
    await store.close()
    assert path.read_bytes() == b"notes of somebody else" * 100


async def test_a_file_of_a_later_version_is_left_as_it_is(tmp_path: Path) -> None:
    file = sqlite3.connect(tmp_path / FILE_NAME)
    file.execute("PRAGMA user_version=99")
    store = LocalResponseStore(tmp_path)
    with pytest.raises(UnavailableError, match="99"):
        await store.create(response("r1"), [], [], NOBODY)
    await store.close()
    assert file.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    file.close()


async def test_a_call_takes_no_longer_when_thousands_are_kept(tmp_path: Path) -> None:
    """Compared in one run: the same calls on a file with 5,000 responses and on one with 20."""

    async def calls(store: LocalResponseStore) -> float:
        best = float("inf")
        for attempt in range(5):
            started = time.perf_counter()
            for number in range(40):
                name = f"new-{attempt}-{number}"
                await store.create(response(name), [], [], NOBODY)
                await store.get(name, NOBODY)
                await store.items([f"item-of-{name}"], NOBODY)
                await store.delete(name, NOBODY)
            best = min(best, time.perf_counter() - started)
        return best

    small, large = LocalResponseStore(tmp_path / "small"), LocalResponseStore(tmp_path / "large")
    for store, count in ((small, 20), (large, 5000)):
        for start in range(0, count, 500):
            names = [f"r{number}" for number in range(start, min(start + 500, count))]
            await asyncio.gather(*(store.create(response(name), [], [], NOBODY) for name in names))
    assert await calls(large) < 20 * await calls(small)
    await small.close()
    await large.close()


def test_the_state_root_is_chosen_by_the_operator_or_lies_in_the_home_directory() -> None:
    assert state_root({"AGENTSERVER_STATE_ROOT": "/data", "HOME": "/home/a"}) == Path("/data")
    assert state_root({"HOME": "/home/session"}) == Path("/home/session/.agentserver")
