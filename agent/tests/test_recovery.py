"""Kill -9 at each step of a response in the background; the next process goes on, and nothing is lost or repeated."""

import asyncio
import http.client
import json
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cupola_agent import ids
from cupola_agent.tasks.base import TaskFilter
from cupola_agent.tasks.local import LocalTaskStore

from agent.tests.fake_platform import running_platform

StartAgent = Callable[..., Any]
RunningAgent = Any

# The agent of these tests. The fault kills the first process that comes to it, and no other.
SOURCE = """
import os
import signal
from pathlib import Path

from cupola_agent import Agent
from cupola_agent.responses import journal

if os.environ.get("FOUNDRY_HOSTING_ENVIRONMENT"):
    from cupola_agent.stores.platform import PlatformResponseStore as Responses
    from cupola_agent.tasks.platform import PlatformTaskStore as Tasks
else:
    from cupola_agent.stores.local import LocalResponseStore as Responses
    from cupola_agent.tasks.local import LocalTaskStore as Tasks

HOME = Path(os.environ["HOME"])
FAULT = os.environ.get("FAULT", "")


def fault(name):
    if name == FAULT:
        try:
            (HOME / "died").touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def around(owner, method, name):
    real = getattr(owner, method)

    async def faulty(*arguments, **named):
        fault(f"before {name}")
        result = await real(*arguments, **named)
        fault(f"after {name}")
        return result

    setattr(owner, method, faulty)


around(Tasks, "create", "the task is made")
around(Tasks, "delete", "the task is deleted")
around(Responses, "create", "the response is stored")
around(Responses, "update", "the end is stored")
real_append = journal._append


def append(path, data):
    if b"event: response.completed" in data:
        fault("before the last event is written")
    if b"two" in data:
        fault("before an event is written")
    real_append(path, data)
    if b"event: response.completed" in data:
        fault("after the last event is written")
    if b"two" in data:
        fault("after an event is written")


journal._append = append
agent = Agent()


@agent.responses(resilient=True)
async def reply(context, stream):
    with (HOME / "runs").open("a") as runs:
        runs.write("run ")
    fault("when the handler begins")
    stream.text("one ")
    await stream.checkpoint()
    await wait_for_events()
    fault("when the handler has said something")
    stream.text("two ")
    await wait_for_events()
    stream.text("three")
    fault("when the handler ends")


async def wait_for_events():
    import asyncio

    await asyncio.sleep(0.02)
"""

NEVER_ACCEPTED = ("before the task is made", "after the task is made", "before the response is stored")
STEPS = (
    *NEVER_ACCEPTED,
    "after the response is stored",
    "when the handler begins",
    "when the handler has said something",
    "when the handler ends",
    "before the end is stored",
    "after the end is stored",
    "before the task is deleted",
    "after the task is deleted",
)
STREAM_STEPS = (
    "before an event is written",
    "after an event is written",
    "before the last event is written",
    "after the last event is written",
)


def ask(agent: RunningAgent, response_id: str, *, stream: bool) -> bytes:
    """What came of the answer before the process died, or all of it."""
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=60)
    body = json.dumps({"model": "m", "input": "go", "background": True, "stream": stream})
    received = b""
    try:
        connection.request("POST", "/responses", body, {"x-agent-response-id": response_id})
        answer = connection.getresponse()
        while piece := answer.read1():
            received += piece
    except (http.client.HTTPException, OSError):
        return received
    finally:
        connection.close()
    return received


def get(agent: RunningAgent, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def ended(agent: RunningAgent, response_id: str) -> dict[str, Any]:
    """The response once it has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status, body = get(agent, f"/responses/{response_id}")
        assert status == 200, body
        response: dict[str, Any] = json.loads(body)
        if response["status"] not in ("queued", "in_progress"):
            return response
        time.sleep(0.02)
    raise AssertionError("the response did not end")


def text_of(response: dict[str, Any]) -> str:
    return "".join(part["text"] for item in response["output"] for part in item["content"])


def numbers(stream: bytes) -> list[int]:
    frames = [frame for frame in stream.split(b"\n\n")[:-1] if not frame.startswith(b":")]
    return [json.loads(frame.partition(b"\ndata: ")[2])["sequence_number"] for frame in frames]


def tasks_left(folder: Path) -> int:
    async def count() -> int:
        store = LocalTaskStore(folder)
        try:
            return len((await store.list(TaskFilter())).tasks)
        finally:
            await store.close()

    return asyncio.run(count())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def platform_beside(folder: Path) -> Iterator[Mapping[str, str]]:
    """A platform in a thread of its own; gives the environment of its containers."""
    started: queue.Queue[Mapping[str, str]] = queue.Queue()
    loop, end = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with running_platform(folder) as platform:
            started.put(platform.variables)
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield started.get(timeout=30)
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(30)
        loop.close()


CASES = [
    *((step, False) for step in STEPS),
    *((step, True) for step in (*STEPS, *STREAM_STEPS)),
]


@pytest.mark.parametrize(("step", "stream"), CASES)
def test_a_killed_process_loses_and_repeats_nothing(
    step: str, stream: bool, start_agent: StartAgent, tmp_path: Path
) -> None:
    kill_and_go_on(step, stream, start_agent, tmp_path, tmp_path / ".agentserver", {})


@pytest.mark.parametrize(("step", "stream"), CASES)
def test_nor_does_one_whose_responses_are_on_a_platform(
    step: str, stream: bool, start_agent: StartAgent, tmp_path: Path
) -> None:
    folder = tmp_path / "platform"
    folder.mkdir()
    with platform_beside(folder) as variables:
        kill_and_go_on(step, stream, start_agent, tmp_path, folder, variables)


def kill_and_go_on(
    step: str, stream: bool, start_agent: StartAgent, tmp_path: Path, folder: Path, variables: Mapping[str, str]
) -> None:
    """Kills a process at this step, starts another, and looks at what both have said; tasks are in the folder."""
    response_id = ids.new_id("caresp", ids.new_partition())
    first = start_agent(SOURCE, FAULT=step, **variables)
    seen = ask(first, response_id, stream=stream)
    assert first.process.wait(60) == -9, first.process.communicate()
    assert (tmp_path / "died").exists()
    second = start_agent(SOURCE, FAULT=step, **variables)
    if step in NEVER_ACCEPTED:
        assert seen == b""
        wait_for(lambda: tasks_left(folder) == 0)
        assert get(second, f"/responses/{response_id}")[0] == 404
        assert not (tmp_path / "runs").exists()
        return
    response = ended(second, response_id)
    assert response["status"] == "completed"
    assert text_of(response) == "one two three"
    assert (tmp_path / "runs").read_text().count("run") <= 2
    wait_for(lambda: tasks_left(folder) == 0)
    if stream:
        status, replayed = get(second, f"/responses/{response_id}?stream=true")
        assert status == 200
        assert numbers(replayed) == list(range(len(numbers(replayed))))
        whole = seen[: seen.rfind(b"\n\n") + 2] if b"\n\n" in seen else b""
        assert replayed.startswith(whole), "what was seen before is what is replayed"
        assert replayed.count(b"event: response.completed\n") == 1
        assert replayed.endswith(b"\n\n")
        last = json.loads(replayed.split(b"\n\n")[-2].partition(b"\ndata: ")[2])
        assert text_of(last["response"]) == "one two three"
        last_seen = numbers(whole)[-1] if whole else -1
        _, rest = get(second, f"/responses/{response_id}?stream=true&starting_after={last_seen}")
        assert whole + rest == replayed


def test_a_response_that_kills_its_process_is_given_up(start_agent: StartAgent, tmp_path: Path) -> None:
    source = SOURCE.replace('runs.write("run ")', 'runs.write("run ")\n    os.kill(os.getpid(), signal.SIGKILL)')
    response_id = ids.new_id("caresp", ids.new_partition())
    agent = start_agent(source)
    ask(agent, response_id, stream=False)
    for _ in range(3):
        assert agent.process.wait(60) == -9
        agent = start_agent(source, ready=False)
    assert agent.process.wait(60) == -9
    last = start_agent(source)
    response = ended(last, response_id)
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert (tmp_path / "runs").read_text().count("run") == 4


def test_a_shutdown_leaves_a_resilient_response_to_the_next_process(start_agent: StartAgent, tmp_path: Path) -> None:
    source = SOURCE.replace('fault("when the handler begins")', "await hold()")
    source += """

async def hold():
    import asyncio

    while not (HOME / "go").exists():
        await asyncio.sleep(0.01)
"""
    response_id = ids.new_id("caresp", ids.new_partition())
    first = start_agent(source)
    answered = json.loads(ask(first, response_id, stream=False))
    assert answered["status"] == "in_progress"
    wait_for(lambda: (tmp_path / "runs").exists())
    first.process.terminate()
    first.process.terminate()
    assert first.process.wait(60) == 0, first.process.communicate()
    (tmp_path / "go").touch()
    second = start_agent(source)
    assert text_of(ended(second, response_id)) == "one two three"
    assert (tmp_path / "runs").read_text().count("run") == 2
