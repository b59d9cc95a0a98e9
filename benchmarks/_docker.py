"""`docker run` to compare with: in the engine of this machine, else in one of the benchmark's own, which nobody else notices.

An engine sets the host's forwarding and packet filter. Ours has mounts and a network of its own, so it sets those of nobody.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks._harness import free_port
from cupola.sandbox.oci.network.namespace import LOOPBACK, enter
from cupola.sandbox.oci.network.netlink import Netlink
from tests.system.engine import EngineUnavailable, PrivateEngine, serve_engine

IMAGE = "cupola-bench:1"


class Docker:
    """An engine, with a thread in its network: there the containers listen."""

    def __init__(self, own: PrivateEngine | None, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._host = os.environ.get("DOCKER_HOST", "") if own is None else f"unix://{own.socket}"

    def _call(self, *arguments: str) -> str:
        host = ["--host", self._host] if self._host else []
        return subprocess.run(["docker", *host, *arguments], check=True, capture_output=True, text=True).stdout.strip()

    def load(self, layout: Path) -> None:
        """Have the image of an OCI layout."""
        host = ["--dest-daemon-host", self._host] if self._host else []
        subprocess.run(["skopeo", "copy", "-q", *host, f"oci:{layout}:1", f"docker-daemon:{IMAGE}"], check=True)

    def remove(self) -> None:
        """Forget the image."""
        self._call("rmi", "-f", IMAGE)

    def run(self, first_answer: Callable[[int], None]) -> float:
        """Seconds from `docker run` to the agent's first answer, for which `first_answer` asks at a port."""
        return self._thread.submit(self._run, first_answer).result()

    def _run(self, first_answer: Callable[[int], None]) -> float:
        port = free_port()
        began = time.perf_counter()
        variables = ["-e", f"PORT={port}", "-e", "HOME=/tmp"]  # an image's home belongs to nobody but root
        name = self._call("run", "--rm", "-d", "--network", "host", *variables, "-m", "1g", IMAGE)
        first_answer(port)
        took = time.perf_counter() - began
        self._call("kill", name)
        return took


@contextmanager
def docker() -> Iterator[Docker | None]:
    """An engine for the length of the block, or None where there is none; then it prints why."""
    if shutil.which("docker") is None or shutil.which("skopeo") is None:
        print("docker: it needs the commands docker and skopeo, so that row is missing")
        yield None
    elif subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0:
        with ThreadPoolExecutor(1) as thread:
            yield Docker(None, thread)
    else:
        try:
            with serve_engine() as own, ThreadPoolExecutor(1, "docker", _enter_network, (own.pid,)) as thread:
                yield Docker(own, thread)
        except EngineUnavailable as error:
            print(f"docker: {error}, so that row is missing")
            yield None


def _enter_network(process: int) -> None:
    namespace = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    enter(namespace)
    os.close(namespace)
    netlink = Netlink()
    netlink.set_up(LOOPBACK)
    netlink.close()
