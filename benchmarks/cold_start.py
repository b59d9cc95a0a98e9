"""From nothing to the first answer of the echo agent, with the same image: how much of it is the platform's doing?

* bare: the agent's process in a chroot of the same files, with a /proc as any container has, which some libraries read.
* crun: a container of the same files made by `crun run` alone, in the host's network.
* cupola: a request without a session id, through the gateway, which makes a session and starts its sandbox.
* docker: `docker run`, where there is an engine or one can be started.

Each measures from the start until `POST /responses` is answered. The kinds take turns, so that whatever else the
machine does falls on all alike.
"""

from __future__ import annotations

import asyncio
import atexit
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks._docker import docker  # noqa: E402
from benchmarks._harness import Goal, Row, free_port, options, report  # noqa: E402
from cupola.images.model import Image  # noqa: E402
from cupola.images.store import ImageStore  # noqa: E402
from cupola.sandbox.base import MIB, SandboxSpec  # noqa: E402
from cupola.sandbox.oci import linux  # noqa: E402
from cupola.sandbox.oci.cgroup import ControlGroups, find_hierarchies  # noqa: E402
from cupola.sandbox.oci.installations import enter_private_mount_namespace  # noqa: E402
from cupola.sandbox.oci.mounts import mount_overlay  # noqa: E402
from cupola.sandbox.oci.runtime_config import User, runtime_config  # noqa: E402
from scripts.build_sample import build  # noqa: E402
from tests.system.platform import Platform  # noqa: E402

BODY = json.dumps({"input": "hello"}).encode()
JSON = {"content-type": "application/json"}
DEADLINE = 30.0
GROUP = "cupola-bench"


@dataclass(frozen=True)
class Bench:
    """The unpacked image and a scratch folder."""

    image: Image
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": "/tmp", **dict(self.image.config.environment), "PORT": str(free_port())}  # noqa: S108

    @property
    def arguments(self) -> list[str]:
        return [*self.image.config.entrypoint, *self.image.config.command]

    def overlay(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        mount_overlay(self.image.layers, folder / "upper", folder / "work", folder / "root")
        return folder


def first_answer(port: int) -> None:
    """Ask until the agent answers, as a client that cannot know when it is ready has to."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        try:
            connection.request("POST", "/responses", BODY, JSON)
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                return
        except (ConnectionRefusedError, ConnectionResetError, http.client.RemoteDisconnected):
            time.sleep(0.002)
        finally:
            connection.close()
    raise TimeoutError(f"nothing answered on port {port}")


def enter(root: Path, working_directory: str) -> None:
    os.chroot(root)
    os.chdir(working_directory)
    os.setgid(1000)
    os.setuid(1000)


def bare(bench: Bench) -> float:
    folder, environment = bench.overlay(), bench.environment
    linux.mount("proc", str(folder / "root" / "proc"), "proc", linux.MS_NOSUID | linux.MS_NODEV)
    began = time.perf_counter()
    process = subprocess.Popen(
        bench.arguments,
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=lambda: enter(folder / "root", bench.image.config.working_directory),
    )  # fmt: skip
    first_answer(int(environment["PORT"]))
    took = time.perf_counter() - began
    process.kill()
    process.wait()
    linux.unmount(str(folder / "root" / "proc"))
    linux.unmount(str(folder / "root"))
    return took


def crun(bench: Bench) -> float:
    folder, environment = bench.overlay(), bench.environment
    for name in ("hosts", "resolv.conf"):
        (folder / name).write_text("")
    for name in ("home", "files"):
        (folder / name).mkdir()
    name = f"bench-{folder.name}"
    spec = SandboxSpec(
        name=name, layers=(), arguments=tuple(bench.arguments), environment=tuple(environment.items()),
        working_directory=bench.image.config.working_directory, user="", home=folder / "home", files=folder / "files",
        cpu=1.0, memory=1024 * MIB,
    )  # fmt: skip
    home, files = folder / "home", folder / "files"
    config = runtime_config(
        spec, folder / "root", folder / "hosts", folder / "resolv.conf", None, home, files, f"/{GROUP}/{name}",
        "/proc/self/ns/net", User(1000, 1000),
    )  # fmt: skip
    namespaces = config["linux"]["namespaces"]
    config["linux"]["namespaces"] = [namespace for namespace in namespaces if namespace["type"] != "network"]
    # A sysfs needs a network namespace of its own.
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "sysfs"]
    (folder / "config.json").write_text(json.dumps(config))
    command = ["crun", "--root", str(folder / "state"), "--cgroup-manager", "cgroupfs"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "run", "--bundle", str(folder), name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    first_answer(int(environment["PORT"]))
    took = time.perf_counter() - began
    subprocess.run([*command, "kill", name, "KILL"], check=True)
    process.wait()
    linux.unmount(str(folder / "root"))
    return took


def load_image(platform: Platform, digest: str) -> Image:
    """An image as a platform has unpacked it."""

    async def load() -> Image | None:
        store = ImageStore(platform.data / "images")
        image = await store.load(digest)
        await store.close()
        return image

    image = asyncio.run(load())
    if image is None:
        raise RuntimeError("the platform has no image")
    return image


class Cupola:
    """A platform on which the image is deployed."""

    def __init__(self, folder: Path, image: str) -> None:
        self.platform = Platform(folder / "data").start()
        version = self.platform.deploy("echo", image)
        if version["status"] != "active":
            raise RuntimeError(f"the deployment failed: {version['error']}")
        with self.platform.http() as client:
            self._headers = {**JSON, "authorization": client.headers["authorization"]}
            self._connection = http.client.HTTPConnection("127.0.0.1", client.base_url.port, timeout=DEADLINE)
        self.image = load_image(self.platform, str(version["image_digest"]))

    def new_session(self, _: Bench) -> float:
        return self._ask(BODY)[0]

    def running_session(self) -> Callable[[Bench], float]:
        _, session = self._ask(BODY)
        body = json.dumps({"input": "hello", "agent_session_id": session}).encode()
        return lambda _: self._ask(body)[0]

    def _ask(self, body: bytes) -> tuple[float, str]:
        began = time.perf_counter()
        path = "/api/projects/default/agents/echo/endpoint/protocols/openai/responses"
        self._connection.request("POST", path, body, self._headers)
        answer = self._connection.getresponse()
        took = time.perf_counter() - began
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(content.decode())
        return took, str(answer.headers["x-agent-session-id"])


def main() -> None:
    chosen = options(__doc__ or "")
    if os.geteuid() != 0:
        sys.exit("cold_start: sandboxes need root")
    enter_private_mount_namespace()
    with tempfile.TemporaryDirectory(prefix="cupola-bench-") as name, docker() as engine:
        folder = Path(name)
        build(ROOT / "samples" / "echo", folder / "echo", "1")
        cupola = Cupola(folder, f"oci:{folder / 'echo'}:1")
        atexit.register(cupola.platform.stop)
        bench = Bench(cupola.image, folder)
        kinds: dict[str, Callable[[Bench], float]] = {"bare": bare, "crun": crun, "cupola": cupola.new_session}
        if engine is not None:
            engine.load(folder / "echo")
            run = engine.run
            kinds["docker"] = lambda _: run(first_answer)
        kinds["cupola, running"] = cupola.running_session()
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for round_number in range(7 if chosen.quick else 31):
            for kind, measure in kinds.items():
                took = 1000 * measure(bench)
                if round_number > 0:
                    times[kind].append(took)
        ControlGroups(GROUP, find_hierarchies()).remove_parent()
        if engine is not None:
            engine.remove()
    rows = {kind: Row.of(kind, values) for kind, values in times.items()}
    goals = [
        Goal(
            "a new session answers within 60 ms of the bare process (p50)", rows["cupola"].p50 <= rows["bare"].p50 + 60
        )
    ]
    if engine is not None:
        goals.append(
            Goal("a new session answers before docker run does (p50)", rows["cupola"].p50 < rows["docker"].p50)
        )
    report("Start to first answer of the echo agent", list(rows.values()), "bare", goals, chosen)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
