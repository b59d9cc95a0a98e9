"""The protocol library's own server beside a bare uvicorn (uvloop, httptools), all with the same trivial application.

    .venv/bin/python benchmarks/agent_server.py --quick

Needs `wrk` (a Debian package). CPU time of the server's process per request or event is the figure to trust on a busy
machine; requests per second are what was left over for it.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._harness import Goal, conclude, options  # noqa: E402

BODY = b'{"input":"hello","store":false}'
EVENT = b"event: response.output_text.delta\ndata: " + b"x" * 246 + b"\n\n"
EVENTS = 1000
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

APPLICATION = f"""
import sys

EVENT = {EVENT!r}
HEADERS = ((b"content-type", b"application/json"), (b"x-request-id", b"0123456789abcdef"), (b"x-platform-server", b"bench"))
STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))


class App:
    async def start(self): ...
    def drain(self): ...
    async def stop(self): ...

    async def answer(self, exchange):
        body = await exchange.body()
        if exchange.path == "/stream":
            exchange.start(200, STREAM)
            for _ in range({EVENTS}):
                exchange.write(EVENT)
                await exchange.drained()
            exchange.finish()
        else:
            exchange.respond(200, HEADERS, b"x" * 700)

    async def talk(self, socket): ...


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while (kind := (await receive())["type"]) != "lifespan.shutdown":
            await send({{"type": kind + ".complete"}})
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/stream":
        await send({{"type": "http.response.start", "status": 200, "headers": list(STREAM)}})
        for _ in range({EVENTS}):
            await send({{"type": "http.response.body", "body": EVENT, "more_body": True}})
        await send({{"type": "http.response.body", "body": b"", "more_body": False}})
    else:
        headers = [*HEADERS, (b"content-length", b"700")]
        await send({{"type": "http.response.start", "status": 200, "headers": headers}})
        await send({{"type": "http.response.body", "body": b"x" * 700, "more_body": False}})


if __name__ == "__main__":
    port, kind = int(sys.argv[1]), sys.argv[2]
    if "plain" in sys.argv:
        sys.modules["uvloop"] = None
    if "quiet" in sys.argv:
        import logging

        logging.getLogger("cupola_agent.access").setLevel(logging.ERROR)
    if kind == "ours":
        from cupola_agent.server.process import run

        run(App(), "127.0.0.1", port)
    elif kind == "hosted":
        from cupola_agent.server.process import run

        run(asgi, "127.0.0.1", port)
    else:
        import uvicorn

        uvicorn.run(asgi, port=port, log_level="warning", access_log=False, loop="uvloop", http="httptools", ws="none")
"""


@dataclass(frozen=True)
class Figures:
    """What one server showed. Rates are per second, `cpu` is in microseconds of the server's process."""

    name: str
    ready_ms: float
    ready_cpu_ms: float
    memory_mb: float
    requests: dict[int, float]
    request_cpu: dict[int, float]
    events: dict[int, float]
    event_cpu: dict[int, float]


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    pid: int
    port: int
    ready_ms: float

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(") ")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS

    def memory_mb(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(found[1]) / 1024 if found else 0.0


@contextmanager
def serving(file: Path, *arguments: str) -> Iterator[Served]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(file), str(port), *arguments], stderr=subprocess.DEVNULL)
    try:
        request = b"GET /readiness HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 5) as client:
                    client.sendall(request)
                    if client.recv(16).startswith(b"HTTP/1.1 200"):
                        break
            except ConnectionRefusedError:
                time.sleep(0.001)
            if time.perf_counter() - began > 30:
                raise TimeoutError("the server did not become ready")
        yield Served(process.pid, port, (time.perf_counter() - began) * 1000)
    finally:
        process.terminate()
        process.wait(30)


def requests(served: Served, script: Path, connections: int, seconds: int) -> tuple[float, float]:
    """Requests per second and microseconds of the server's time for each."""
    before = served.cpu()
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "-s",
        str(script),
        f"http://127.0.0.1:{served.port}/responses",
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = served.cpu() - before
    count = int(re.findall(r"(\d+) requests in", output)[0])
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", output)[0])
    if "Non-2xx" in output:
        raise RuntimeError(output)
    return rate, used / count * 1e6


def streams(served: Served, at_once: int, rounds: int) -> tuple[float, float]:
    """Events per second over all streams, and microseconds of the server's time for each."""
    before, began = served.cpu(), time.perf_counter()
    for _ in range(rounds):
        asyncio.run(_read_streams(served.port, at_once))
    count = at_once * rounds * EVENTS
    return count / (time.perf_counter() - began), (served.cpu() - before) / count * 1e6


async def _read_streams(port: int, at_once: int) -> None:
    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /stream HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        size = 0
        while data := await reader.read(1 << 20):
            size += len(data)
        if size < EVENTS * len(EVENT):
            raise RuntimeError("a stream broke off")
        writer.close()

    await asyncio.gather(*(one() for _ in range(at_once)))


def measure(name: str, file: Path, script: Path, arguments: Sequence[str], quick: bool) -> Figures:
    ready = []
    for _ in range(3 if quick else 9):
        with serving(file, *arguments) as served:
            ready.append((served.ready_ms, served.cpu() * 1000))
    with serving(file, *arguments) as served:
        memory = served.memory_mb()
        by_connections = {n: requests(served, script, n, 2 if quick else 8) for n in (1, 16, 64)}
        by_streams = {n: streams(served, n, (40 if n == 1 else 3) * (1 if quick else 4)) for n in (1, 32)}
    return Figures(
        name,
        statistics.median(wall for wall, _ in ready),
        statistics.median(cpu for _, cpu in ready),
        memory,
        {n: rate for n, (rate, _) in by_connections.items()},
        {n: cpu for n, (_, cpu) in by_connections.items()},
        {n: rate for n, (rate, _) in by_streams.items()},
        {n: cpu for n, (_, cpu) in by_streams.items()},
    )


def main() -> None:
    chosen = options(__doc__ or "")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file, script = Path(folder, "served.py"), Path(folder, "post.lua")
        file.write_text(APPLICATION)
        script.write_text(
            f'wrk.method = "POST"\nwrk.body = \'{BODY.decode()}\'\nwrk.headers["content-type"] = "application/json"\n'
        )
        for name, *arguments in (
            ("uvicorn", "uvicorn"),
            ("ours", "ours"),
            ("ours, no access lines", "ours", "quiet"),
            ("ours, asyncio's loop", "ours", "plain"),
            ("ours, hosting ASGI", "hosted", "quiet"),
        ):
            rows.append(measure(name, file, script, arguments, chosen.quick))
            show(rows[-1], rows[0])
    base, ours = rows[0], rows[1]
    goals = [
        Goal("needs less processor time to be ready than uvicorn", ours.ready_cpu_ms < base.ready_cpu_ms),
        Goal("at most 35 MB", ours.memory_mb <= 35),
        Goal("costs less per request than uvicorn", ours.request_cpu[16] < base.request_cpu[16]),
        Goal("at most a third of uvicorn's cost per event", ours.event_cpu[32] * 3 <= base.event_cpu[32]),
    ]
    conclude("The server of cupola-agent", [asdict(row) for row in rows], goals, chosen)


def show(row: Figures, base: Figures) -> None:
    print(f"\n{row.name}: ready {row.ready_ms:.0f} ms ({row.ready_cpu_ms:.0f} of CPU), {row.memory_mb:.1f} MB")
    for count, rate in row.requests.items():
        cpu = row.request_cpu[count]
        print(
            f"  {count:>2} connections  {rate:>9,.0f} requests/s  {cpu:>7.1f} us each"
            f"   ({rate / base.requests[count]:.2f} x the rate, {cpu / base.request_cpu[count]:.2f} x the cost of uvicorn)"
        )
    for count, rate in row.events.items():
        cpu = row.event_cpu[count]
        print(
            f"  {count:>2} streams      {rate:>9,.0f} events/s    {cpu:>7.2f} us each"
            f"   ({rate / base.events[count]:.2f} x the rate, {cpu / base.event_cpu[count]:.2f} x the cost of uvicorn)"
        )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    main()
