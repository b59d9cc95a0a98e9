"""What only the store of tasks in a file promises."""

import asyncio
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cupola_agent.stores.base import NotFoundError
from cupola_agent.tasks.base import LeaseRequest, TaskFilter
from cupola_agent.tasks.local import LocalTaskStore

WORKER = """
import asyncio, os, sys
from pathlib import Path
from cupola_agent.tasks.base import LeaseRequest
from cupola_agent.tasks.local import LocalTaskStore

async def main():
    store = LocalTaskStore(Path(sys.argv[1]))
    fields = {"id": "t1", "agent_name": "agent", "session_id": "s", "status": "in_progress", "payload": {"n": 0}}
    await store.create(fields, LeaseRequest("owner", f"worker-{os.getpid()}", 60))
    for number in range(1, 1_000_000):
        await store.update("t1", {"payload": {"n": number}})
        print(number, flush=True)

asyncio.run(main())
"""


def work_and_be_killed(folder: Path) -> int:
    """The last step that the worker told of."""
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    told = [worker.stdout.readline() for _ in range(50)]
    os.kill(worker.pid, signal.SIGKILL)
    told += worker.stdout.readlines()
    worker.stdout.close()
    worker.wait()
    return int(told[-1])


async def test_a_restarted_worker_finds_its_task_as_it_left_it_and_takes_it_up_at_once(tmp_path: Path) -> None:
    last = work_and_be_killed(tmp_path)

    store = LocalTaskStore(tmp_path)
    (task,) = (await store.list(TaskFilter(status="in_progress", lease_owner="owner"))).tasks
    # One more may have been written than was told.
    assert task.payload["n"] in (last, last + 1)
    taken = await store.update("t1", {}, LeaseRequest("owner", "worker-new", 60), if_match=task.etag)
    assert taken.lease is not None
    assert (taken.lease.generation, taken.lease.expiry_count) == (1, 0)
    await store.close()


async def test_completed_tasks_are_forgotten_and_others_are_not(tmp_path: Path) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    store = LocalTaskStore(tmp_path, retention_seconds=10, clock=lambda: now)
    for name in ("done", "open"):
        fields = {"id": name, "agent_name": "agent", "session_id": "s", "attachments": {"a": 1}}
        await store.create(fields)
    await store.update("done", {"status": "completed"})
    await store.close()
    now += timedelta(seconds=11)
    store = LocalTaskStore(tmp_path, retention_seconds=10, clock=lambda: now)
    await store.create({"agent_name": "agent", "session_id": "s"})
    with pytest.raises(NotFoundError):
        await store.get("done")
    assert (await store.get("open")).attachments == {"a": 1}
    await store.close()


async def test_two_processes_see_one_another_through_the_file(tmp_path: Path) -> None:
    first, second = LocalTaskStore(tmp_path), LocalTaskStore(tmp_path)
    await first.create({"id": "t1", "agent_name": "agent", "session_id": "s", "payload": {"n": 0}})

    async def count(store: LocalTaskStore) -> None:
        for number in range(30):
            await store.update("t1", {"payload": {f"{id(store)}-{number}": number}})

    await asyncio.gather(count(first), count(second))
    assert len((await first.get("t1")).payload) == 61
    await first.close()
    await second.close()
