"""Answers with its session's id and the caller's nonce, by way of a child process that may be killed, and keeps files."""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from cupola_agent import Agent

agent = Agent()
PLACES = {"home": Path.home() / "soak", "files": Path("/files/soak"), "uploads": Path.home() / "uploads"}


class Child:
    """A process that repeats lines; a new one takes the place of one that was killed."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def repeat(self, line: str) -> str:
        async with self._turn:
            while True:
                if self._process is None:
                    pipe = asyncio.subprocess.PIPE
                    self._process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
                process, self._process = self._process, None
                said = await self._ask(process, line)
                if said:
                    # Only now: what a cancelled question leaves in the pipe is not the answer to the next one.
                    self._process = process
                    return said
                await process.wait()

    async def _ask(self, process: asyncio.subprocess.Process, line: str) -> str:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line.encode() + b"\n")
            await process.stdin.drain()
            return (await process.stdout.readline()).decode().strip()
        except ConnectionError:
            return ""


child = Child()


@agent.responses
async def reply(input: str) -> AsyncIterator[str]:  # noqa: A002
    order = json.loads(input)
    stamp = {"session": os.environ["FOUNDRY_AGENT_SESSION_ID"], "nonce": order["nonce"]}
    for number in range(order.get("pieces", 0)):
        yield json.dumps({**stamp, "number": number}) + "\n"
        await asyncio.sleep(order["pause"])
    result = await asyncio.to_thread(DEEDS[order["do"]], order)
    yield await child.repeat(json.dumps({**stamp, "result": result}))


def count(_: dict[str, Any]) -> int:
    """One more than the last time; the number outlives the process."""
    file = Path.home() / "count"
    number = int(file.read_text()) + 1 if file.exists() else 1
    partial = file.with_name("count.new")
    partial.write_text(str(number))
    partial.replace(file)
    return number


def write(order: dict[str, Any]) -> None:
    directory = PLACES[order["place"]]
    directory.mkdir(exist_ok=True)
    content = hashlib.shake_256(order["content"].encode()).digest(order["size"])
    (directory / order["name"]).write_bytes(content)


def remove(order: dict[str, Any]) -> None:
    (PLACES[order["place"]] / order["name"]).unlink(missing_ok=True)


def hashes(_: dict[str, Any]) -> dict[str, str]:
    """The sha256 of each file by its place and name, without those that come or go meanwhile."""
    found = {}
    for place, directory in PLACES.items():
        for path in directory.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):
                found[f"{place}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


DEEDS = {"nothing": lambda _: None, "count": count, "write": write, "remove": remove, "hashes": hashes}

if __name__ == "__main__":
    agent.run()
