"""Sandboxes of the `fake` driver in which a real interpreter of this machine runs the image's program."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cupola.domain.version import Version
from cupola.images.model import Image
from cupola.sandbox.fake import FakeProcess, Program
from cupola.sessions.launcher import RunningAgent, SandboxSession
from cupola.sessions.priming.plan import Plan
from cupola.telemetry.output import OutputTail
from tests.unit.sessions.world import World

PYTHON = sys.executable

AGENT = """
import http.server, json, os, random, sys, helper

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({
            "id": os.environ.get("FOUNDRY_AGENT_SESSION_ID"), "guid": os.environ.get("FOUNDRY_AGENT_SESSION_GUID"),
            "imported": helper.SEEN, "random": random.random(), "argv": sys.argv, "main": __name__,
        }).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print("port", server.server_port, flush=True)
server.serve_forever()
"""
"""Answers what it knows of its session. It prints the port that the fake sandbox has for its own."""


def interpreter(directory: Path) -> Program:
    """What an interpreter does in a sandbox: that of this machine runs in `directory`."""

    async def run(process: FakeProcess) -> int:
        given: int = subprocess.DEVNULL
        if process.standard_input is not None:
            # A real sandbox has an end that blocks.
            process.standard_input.setblocking(True)
            given = process.standard_input.fileno()
        child = await asyncio.create_subprocess_exec(
            *process.spec.arguments, env=dict(process.spec.environment), cwd=directory, stdin=given,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if process.standard_input is not None:
            process.standard_input.close()
        assert child.stdout is not None
        try:
            async for line in child.stdout:
                if line.startswith(b"port "):
                    process.port = int(line[5:])
                else:
                    process.print("stdout", line)
            return await child.wait()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    return run


@dataclass
class Sink(OutputTail):
    """Keeps what is printed and what the platform has to say."""

    told: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def output(self, stream: str, data: bytes) -> None:
        self.told.append((stream, data.decode().removesuffix("\n")))
        super().output(stream, data)


class PrimedWorld:
    """A world with one version whose image is a Python program."""

    def __init__(self, world: World, version: Version, image: Image, directory: Path) -> None:
        self.world = world
        self.version = version
        self.image = image
        self.directory = directory
        self.events: list[str] = []
        self.learning = SandboxSession("trial", "trial-guid", directory / "trial")
        self.first = SandboxSession("first", "first-guid", directory / "first")
        self.second = SandboxSession("second", "second-guid", directory / "second")

    @property
    def application(self) -> Path:
        """Where the program is."""
        return self.image.layers[0] / "app"

    async def learn(self) -> Plan | None:
        """Learn what the version imports; gives the plan that was kept, and leaves what was reported in `events`."""

        async def report(text: str, _: float | None) -> None:
            self.events.append(text)

        primer, admission = self.world.primer, self.world.launcher.admission
        memory = self.version.definition.memory_bytes
        await primer.learn(self.version, self.image, self.learning, lambda: admission.take(memory, "test"), report)
        return await primer.plan(self.version)

    async def ask(self, agent: RunningAgent) -> Any:
        """What the agent says of itself."""
        async with await agent.client.request(b"GET", b"/", []) as response:
            return json.loads(await response.read(1 << 16))

    async def nothing_left(self) -> None:
        assert await self.world.sandboxes() == 0
        assert self.world.launcher.admission.count == 0


@asynccontextmanager
async def primed_world(
    world: World,
    directory: Path,
    files: dict[str, str] | None = None,
    *,
    command: tuple[str, ...] = (PYTHON, "main.py"),
) -> AsyncIterator[PrimedWorld]:
    """`files` are added to the agent's, by name."""
    root = directory / "root"
    for name, content in {"main.py": AGENT, "helper.py": "SEEN = None", **(files or {})}.items():
        (root / "app" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "app" / name).write_text(content)
    for program in (PYTHON, "/bin/sh"):
        (root / program[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / program[1:]).write_bytes(b"\x7fELF")
        (root / program[1:]).chmod(0o755)
    world.programs[PYTHON] = interpreter(root / "app")
    version = await world.add(image="agent", enable_memory_snapshot=True)
    stored = world.images.stored[version.digest or ""]
    image = replace(stored, layers=(root,), config=replace(stored.config, entrypoint=command))
    world.images.stored[version.digest or ""] = image
    yield PrimedWorld(world, version, image, directory)
