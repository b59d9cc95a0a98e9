"""How many idle sandboxes fit into 16 GiB, beside bare processes of the same image, and what the platform keeps for stored
sessions.

* bare: the agent's process in a chroot of the same files, after its first answer.
* frozen: a session's sandbox after its first answer, frozen, with all that the platform keeps for it.

`host` is by how much the memory fell that the machine could still give (MemAvailable), which counts everything: page tables,
sockets, the server's own share, files once for all. `own` is what the control group is charged with, or of bare processes
their proportional share; files that are shared are charged to whoever read them first. Other programs on the machine
disturb `host`: a sandbox counts with the larger of the two, a bare process with its own, and `--quick`, which starts few,
leaves `host` out.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._harness import Goal, Options, conclude, options  # noqa: E402
from benchmarks.cold_start import Bench, enter, first_answer, load_image  # noqa: E402
from benchmarks.session_tiers import AGENTS, Agent, Tiers, build_agent  # noqa: E402
from cupola.sandbox.oci import linux  # noqa: E402
from cupola.sandbox.oci.cgroup import find_hierarchies  # noqa: E402
from cupola.sandbox.oci.installations import enter_private_mount_namespace  # noqa: E402
from tests.system.platform import Platform  # noqa: E402

MIB = 1024.0
"""In kilobytes, which is how the kernel tells sizes."""
ROOM = 16 * 1024
"""MiB."""
FIRST = 5
"""Sandboxes that are there before anything is measured: they have read the files."""
MEASURED = {"echo": 100, "official": 40}
MOST = {"echo": 300, "official": 100}
"""Sandboxes that are started in all, unless the machine has less room."""
LEFT_FREE = 3 * 1024
"""MiB of the machine that are left alone."""
BARE = 20
STORED = 1000
INVOKED = 50
SETTINGS = {"CUPOLA_FREEZE_AFTER": "1", "CUPOLA_POOL_SIZE": "0", "CUPOLA_MAX_SANDBOXES": "0"}


@dataclass(frozen=True)
class Density:
    """Memory of one kind of process, in MiB each."""

    name: str
    count: int
    host: float | None
    own: float
    bare: bool

    @property
    def each(self) -> float:
        return self.own if self.bare or self.host is None else max(self.host, self.own)

    @property
    def fitting(self) -> int:
        return int(ROOM / self.each)


@dataclass(frozen=True)
class Stored:
    """The platform with so many stored sessions: its memory in MiB, milliseconds to make one and to list them all."""

    sessions: int
    rss: float
    pss: float
    create: float
    listing: float


def available() -> float:
    """MiB that the machine can still give."""

    def read() -> float:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) / MIB

    samples = []
    for _ in range(5):
        time.sleep(0.2)
        samples.append(read())
    return statistics.median(samples)


def of_process(pid: int, what: str) -> float:
    """`Rss` or `Pss` of a process in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{what}:"))) / MIB


def of_groups(data: Path) -> float:
    """MiB that the control groups of a platform's sandboxes are charged with."""
    hierarchies = find_hierarchies()
    root = hierarchies.unified or hierarchies.controllers["memory"]
    name = "memory.current" if hierarchies.unified else "memory.usage_in_bytes"
    parent = root / f"cupola-{data.joinpath('installation').read_text().replace('-', '')[:12]}"
    return sum(int((group / name).read_text()) for group in parent.glob("s-*")) / MIB / MIB


@contextmanager
def bare_processes(bench: Bench, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes of an image that have answered once."""
    folder = bench.overlay()
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            environment = bench.environment
            process = subprocess.Popen(
                bench.arguments,
                env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                preexec_fn=lambda: enter(folder / "root", bench.image.config.working_directory),
            )  # fmt: skip
            started.append(process)
            first_answer(int(environment["PORT"]))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()
        linux.unmount(str(folder / "root"))


def measure_bare(agent: str, bench: Bench, *, quick: bool) -> Density:
    count = 5 if quick else BARE
    with bare_processes(bench, FIRST):
        before = available()
        with bare_processes(bench, count) as started:
            host = before - available()
            own = sum(of_process(process.pid, "Pss") for process in started)
    return Density(f"{agent}, bare", count, None if quick else host / count, own / count, bare=True)


def measure_frozen(agent: str, platform: Platform, tiers: Tiers, *, quick: bool) -> Density:
    count = 10 if quick else MEASURED[agent]

    def start(number: int) -> None:
        for _ in range(number):
            tiers.ask(tiers.new_id())

    start(FIRST)
    tiers.until("frozen", FIRST)
    before, before_groups = available(), of_groups(platform.data)
    start(count)
    tiers.until("frozen", FIRST + count)
    host, own = before - available(), of_groups(platform.data) - before_groups
    return Density(f"{agent}, frozen", count, None if quick else host / count, own / count, bare=False)


def reach(tiers: Tiers, there: int, most: int, each: float) -> int:
    """Start sandboxes up to a number as long as there is room for them; returns how many live, each of which still answers."""
    sessions: list[str] = []
    while there + len(sessions) < most and available() > LEFT_FREE + 10 * each:
        sessions += [tiers.ask(tiers.new_id())[1] for _ in range(min(10, most - there - len(sessions)))]
    tiers.until("frozen", there + len(sessions))
    for session in sessions:
        if tiers.ask(session)[2] != "frozen":
            raise RuntimeError(f"session {session} did not keep its sandbox")
    return there + len(sessions)


def measure_agent(agent: Agent, folder: Path, chosen: Options) -> tuple[Density, Density, int]:
    """The bare process, the frozen sandbox, and how many of these were really there at once."""
    layout = build_agent(agent, folder)
    platform = Platform(folder / f"{agent.name}-data", SETTINGS).start()
    try:
        version = platform.deploy(agent.name, f"oci:{layout}:1")
        if version["status"] != "active":
            raise RuntimeError(f"the deployment failed: {version['error']}")
        bench = Bench(load_image(platform, str(version["image_digest"])), folder)
        bare = measure_bare(agent.name, bench, quick=chosen.quick)
        tiers = Tiers(platform, agent.name)
        frozen = measure_frozen(agent.name, platform, tiers, quick=chosen.quick)
        there = FIRST + frozen.count
        reached = there if chosen.quick else reach(tiers, there, MOST[agent.name], frozen.each)
    finally:
        platform.stop()
    return bare, frozen, reached


class StoredSessions:
    """Sessions of the echo agent that have files and no sandbox."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self._path = "/api/projects/default/agents/echo/endpoint/sessions"
        with platform.http() as client:
            self._headers = {"authorization": client.headers["authorization"], "content-type": "application/json"}
            self._connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=60)

    def _call(self, method: str, path: str, body: bytes = b"") -> bytes:
        self._connection.request(method, path, body, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(content.decode())
        return content

    def make(self, name: str) -> float:
        """Make one, and give it a file; the milliseconds that the making took."""
        began = time.perf_counter()
        self._call("POST", self._path, json.dumps({"agent_session_id": name}).encode())
        took = 1000 * (time.perf_counter() - began)
        self._call("PUT", f"{self._path}/{name}/files/content?path=notes", name.encode())
        return took

    def list_all(self) -> tuple[int, float]:
        """How many there are, and the milliseconds that listing all pages took."""
        began, found, after = time.perf_counter(), 0, ""
        while True:
            page = json.loads(self._call("GET", f"{self._path}?limit=100{after}"))
            found += len(page["data"])
            if not page["has_more"]:
                return found, 1000 * (time.perf_counter() - began)
            after = f"&after={page['last_id']}"

    def look(self, create: float) -> Stored:
        found, listing = self.list_all()
        resident, proportional = (
            sum(of_process(process, kind) for process in self._platform.processes) for kind in ("Rss", "Pss")
        )
        return Stored(found, resident, proportional, create, listing)


def measure_stored(folder: Path, chosen: Options) -> list[Stored]:
    layout = build_agent(AGENTS[0], folder / "stored")
    platform = Platform(folder / "stored-data", SETTINGS).start()
    try:
        version = platform.deploy("echo", f"oci:{layout}:1")
        if version["status"] != "active":
            raise RuntimeError(f"the deployment failed: {version['error']}")
        sessions, tiers = StoredSessions(platform), Tiers(platform, "echo")
        rows = [sessions.look(0.0)]
        invoked = 5 if chosen.quick else INVOKED
        for _ in range(invoked):
            tiers.stop(tiers.ask(tiers.new_id())[1])
        rows.append(sessions.look(0.0))
        made = [sessions.make(f"stored-{number:05}") for number in range(STORED - invoked)]
        rows.append(sessions.look(statistics.median(made)))
    finally:
        platform.stop()
    return rows


def show(densities: Sequence[Density], stored: Sequence[Stored]) -> None:
    print(f"\nIdle agents in {ROOM // 1024} GiB\n")
    print(f"{'':18}  {'n':>4}  {'host MiB':>9}  {'own MiB':>8}  {'fit':>6}  {'each / bare':>11}")
    bare = densities[0]
    for row in densities:
        bare = row if row.bare else bare
        ratio = row.each / bare.each
        host = "" if row.host is None else f"{row.host:.1f}"
        print(f"{row.name:18}  {row.count:>4}  {host:>9}  {row.own:>8.1f}  {row.fitting:>6}  {ratio:>11.2f}")
    print("\nThe platform with stored sessions\n")
    print(f"{'sessions':>18}  {'RSS MiB':>8}  {'PSS MiB':>8}  {'create p50 ms':>13}  {'list all ms':>11}")
    for line in stored:
        create = f"{line.create:.1f}" if line.create else ""
        print(f"{line.sessions:>18}  {line.rss:>8.1f}  {line.pss:>8.1f}  {create:>13}  {line.listing:>11.1f}")
    print()


def main() -> None:
    chosen = options(__doc__ or "")
    if os.geteuid() != 0:
        sys.exit("density: sandboxes need root")
    enter_private_mount_namespace()
    densities: list[Density] = []
    goals: list[Goal] = []
    with tempfile.TemporaryDirectory(prefix="cupola-bench-") as name:
        folder = Path(name)
        (folder / "stored").mkdir()
        stored = measure_stored(folder, chosen)
        for agent in AGENTS:
            if agent.name not in MEASURED:
                continue
            bare, frozen, reached = measure_agent(agent, folder, chosen)
            densities += (bare, frozen)
            print(f"{agent.name}: {reached} frozen sandboxes were there at once", flush=True)
            text = f"a sandbox of the {agent.name} agent takes at most 8 MiB more than its bare process"
            goals.append(Goal(text, frozen.each <= bare.each + 8))
    grown = stored[-1].rss - stored[1].rss
    goals += (
        Goal("400 idle sandboxes of the echo agent fit", densities[1].fitting >= 400),
        Goal("1,000 stored sessions take at most 10 MiB of the platform", grown <= 10),
    )
    show(densities, stored)
    rows = [*({**asdict(row), "fitting": row.fitting} for row in densities), *map(asdict, stored)]
    conclude("Idle agents and stored sessions", rows, goals, chosen)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
