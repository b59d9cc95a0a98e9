"""How long a request takes by the tier in which it finds its session, for three agents, beside the same image without Cupola.

* running: the session's sandbox runs.
* idle: as running, after a rest as long as that of frozen ones: it takes a new connection, and finds the caches cold.
* frozen: it was frozen after a rest.
* started: a new session whose id the platform makes, with a sandbox that was started ahead.
* primed: a new session with an id of the caller's own, with an interpreter that was made ready ahead.
* stored: a session that was stopped comes back with its files, once more with an interpreter made ready.
* cold: a new session without anything made ahead.
* bare: the agent's process in a chroot of the same files, until the first answer. It has a /proc, as any container has: the
  official library reads it, and without would skip work that it does wherever it is deployed.
* docker: `docker run` until the first answer, where there is an engine or one can be started.

The agents: the sample on our own library, a plain Starlette agent, the official library; and one whose imports take a second.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._docker import Docker, docker  # noqa: E402
from benchmarks._harness import Goal, Row, options, report  # noqa: E402
from benchmarks.cold_start import BODY, JSON, Bench, bare, first_answer, load_image  # noqa: E402
from cupola.sandbox.oci.installations import enter_private_mount_namespace  # noqa: E402
from scripts.build_sample import build  # noqa: E402
from tests.system.platform import Platform  # noqa: E402

DEADLINE = 60.0
AT_REST = 20
"""Sessions that rest at the same time."""
REST = 2.0
"""Seconds. Connections to agents are kept for less, as they are with the default for freezing."""
REFERENCES = 15
"""Rounds of the bare process and of docker, which are only there to compare with."""

STARLETTE = """
import os
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def readiness(request):
    return JSONResponse({})

async def reply(request):
    return JSONResponse({"input": (await request.json())["input"], "session": os.environ.get("FOUNDRY_AGENT_SESSION_ID")})

app = Starlette(routes=[Route("/readiness", readiness), Route("/responses", reply, methods=["POST"])])
uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
"""
OFFICIAL = """
from azure.ai.agentserver.responses import ResponsesAgentServerHost, TextResponse

app = ResponsesAgentServerHost()

@app.response_handler
async def handler(request, context, cancellation_signal):
    return TextResponse(context, request, text=f"Echo: {await context.get_input_text()}")

app.run()
"""
SLOW = "import slow\n" + STARLETTE


@dataclass(frozen=True)
class Agent:
    """A sample to deploy; `main` is its program, None for the sample echo agent."""

    name: str
    main: str | None
    requirements: Sequence[str] = ()


AGENTS = (
    Agent("echo", None),
    Agent("starlette", STARLETTE, ("starlette", "uvicorn")),
    Agent("official", OFFICIAL, ("azure-ai-agentserver-responses==2.3.0",)),
    Agent("slow", SLOW, ("starlette", "uvicorn")),
)


def build_agent(agent: Agent, folder: Path) -> Path:
    layout = folder / agent.name
    if agent.main is None:
        build(ROOT / "samples" / "echo", layout, "1")
        return layout
    source = folder / f"{agent.name}-source"
    source.mkdir()
    (source / "main.py").write_text(agent.main)
    # Not sleep: what takes long in real imports is work of the processor.
    (source / "slow.py").write_text("import time\nend = time.monotonic() + 1\nwhile time.monotonic() < end: pass\n")
    build(source, layout, "1", requirements=agent.requirements)
    return layout


class Tiers:
    """One agent on a platform."""

    def __init__(self, platform: Platform, agent: str) -> None:
        self._agent = agent
        self._numbers = count()
        self._platform = platform
        with platform.http() as client:
            self._headers = {**JSON, "authorization": client.headers["authorization"]}
            self._connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=DEADLINE)

    def _call(self, method: str, path: str, body: bytes = b"") -> tuple[float, http.client.HTTPResponse]:
        began = time.perf_counter()
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        took = time.perf_counter() - began
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(content.decode())
        return took, answer

    def ask(self, session: str | None) -> tuple[float, str, str]:
        """One request: milliseconds until the head of the answer, the session and the tier in which it was."""
        body = BODY if session is None else json.dumps({"input": "hello", "agent_session_id": session}).encode()
        path = f"/api/projects/default/agents/{self._agent}/endpoint/protocols/openai/responses"
        took, answer = self._call("POST", path, body)
        timing = answer.headers["server-timing"]
        return 1000 * took, answer.headers["x-agent-session-id"], re.findall(r'tier;desc="(\w+)"', timing)[0]

    def reconnect(self) -> None:
        """The server closes connections that were not used for a while: the next request makes another."""
        self._connection.close()

    def new_id(self) -> str:
        return f"session-{next(self._numbers)}"

    def delete(self, session: str) -> None:
        self._call("DELETE", f"/api/projects/default/agents/{self._agent}/endpoint/sessions/{session}")

    def stop(self, session: str) -> None:
        self._call("POST", f"/api/projects/default/agents/{self._agent}/endpoint/sessions/{session}:stop")

    def until(self, status: str, least: int) -> None:
        """Wait until so many sandboxes have a status."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            self._connection.request("GET", "/metrics", headers=self._headers)
            text = self._connection.getresponse().read().decode()
            found = re.search(rf'cupola_sandboxes{{status="{status}"}} ([0-9.]+)', text)
            if found is not None and float(found[1]) >= least:
                return
            time.sleep(0.02)
        raise TimeoutError(f"there were never {least} sandboxes that are {status}")

    def running(self) -> Iterator[float]:
        _, session, _ = self.ask(self.new_id())
        while True:
            yield self._expect("running", self.ask(session))

    def idle(self) -> Iterator[float]:
        sessions = [self.ask(self.new_id())[1] for _ in range(AT_REST)]
        while True:
            time.sleep(REST)
            for session in sessions:
                yield self._expect("running", self.ask(session))

    def frozen(self) -> Iterator[float]:
        sessions = [self.ask(self.new_id())[1] for _ in range(AT_REST)]
        while True:
            # With the one of the requests to a running session.
            self.until("frozen", AT_REST + 1)
            for session in sessions:
                yield self._expect("frozen", self.ask(session))

    def started(self) -> Iterator[float]:
        while True:
            self.until("started_ahead", 1)
            asked = self.ask(None)
            yield self._expect("started", asked)
            self.delete(asked[1])

    def primed(self) -> Iterator[float]:
        while True:
            self.until("primed_ahead", 1)
            asked = self.ask(self.new_id())
            yield self._expect("primed", asked)
            self.delete(asked[1])

    def stored(self) -> Iterator[float]:
        _, session, _ = self.ask(self.new_id())
        while True:
            self.stop(session)
            self.until("primed_ahead", 1)
            yield self._expect("primed", self.ask(session))

    def cold(self) -> Iterator[float]:
        while True:
            asked = self.ask(self.new_id())
            yield self._expect("cold", asked)
            self.delete(asked[1])

    def _expect(self, tier: str, asked: tuple[float, str, str]) -> float:
        took, _, found = asked
        if found != tier:
            raise RuntimeError(f"the request found its sandbox {found}, not {tier}")
        return took


def measure(agent: Agent, folder: Path, engine: Docker | None, *, quick: bool) -> dict[str, Row]:
    layout = build_agent(agent, folder)
    warm = Platform(folder / "warm", {"CUPOLA_FREEZE_AFTER": str(REST), "CUPOLA_POOL_SIZE": "1"}).start()
    bare_of_all = Platform(folder / "cold", {"CUPOLA_POOL_SIZE": "0"}).start()
    for platform in (warm, bare_of_all):
        atexit.register(platform.stop)
        version = platform.deploy(agent.name, f"oci:{layout}:1", enable_memory_snapshot=platform is warm)
        if version["status"] != "active":
            raise RuntimeError(f"the deployment failed: {version['error']}")
    with warm.http() as client:
        for event in client.get(f"/agents/{agent.name}/versions/1/events").json()["data"]:
            if event["step"] == "prime":
                print(f"{agent.name}: {event['message']}")
    tiers, cold = Tiers(warm, agent.name), Tiers(bare_of_all, agent.name)
    rows: dict[str, Row] = {}
    kinds: dict[str, Callable[[], Iterator[float]]] = {
        "running": tiers.running, "idle": cold.idle, "frozen": tiers.frozen, "started": tiers.started,
        "primed": tiers.primed, "stored": tiers.stored, "cold": cold.cold,
    }  # fmt: skip
    repetitions = 20 if quick else 200
    for kind, samples in kinds.items():
        for platform_tiers in (tiers, cold):
            platform_tiers.reconnect()
        times = samples()
        next(times)
        rows[kind] = Row.of(kind, [next(times) for _ in range(repetitions)])
        print(f"{agent.name}: {kind} {rows[kind].p50:.1f} ms", flush=True)
    bench = Bench(load_image(warm, str(version["image_digest"])), folder)
    rounds = 4 if quick else REFERENCES
    rows["bare"] = Row.of("bare", [1000 * bare(bench) for _ in range(rounds)][1:])
    if engine is not None:
        engine.load(layout)
        rows["docker"] = Row.of("docker", [1000 * engine.run(first_answer) for _ in range(rounds)][1:])
        engine.remove()
    for platform in (warm, bare_of_all):
        platform.stop()
    return rows


def goals(agent: str, rows: dict[str, Row]) -> list[Goal]:
    def p50(name: str) -> float:
        return rows[name].p50

    found = [
        Goal("a frozen session adds at most 2 ms (p50)", p50("frozen") <= p50("running") + 2),
        Goal("a new session with a sandbox started ahead answers within 30 ms (p50)", p50("started") <= 30),
        Goal("a cold start adds at most 60 ms to the bare process (p50)", p50("cold") <= p50("bare") + 60),
    ]
    limit = {"official": 100.0, "slow": 250.0}.get(agent, 40.0)
    return [
        *found,
        *(Goal(f"{kind} answers within {limit:g} ms (p50)", p50(kind) <= limit) for kind in ("primed", "stored")),
    ]


def main() -> None:
    chosen = options(__doc__ or "")
    if os.geteuid() != 0:
        sys.exit("session_tiers: sandboxes need root")
    enter_private_mount_namespace()
    with docker() as engine:
        for agent in AGENTS:
            with tempfile.TemporaryDirectory(prefix="cupola-bench-") as name:
                rows = measure(agent, Path(name), engine, quick=chosen.quick)
            title = f"Request to first byte: {agent.name}"
            report(title, list(rows.values()), "running", goals(agent.name, rows), chosen)
            print(flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
