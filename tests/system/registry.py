"""A real registry (the CNCF Distribution's) on loopback, and a real client that pushes to it."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cupola.identity.certificates import Certificates

READY_DEADLINE = 10.0


@contextmanager
def serve_registry(directory: Path, certificates: Certificates | None = None) -> Iterator[str]:
    """Runs a registry for the length of the block, by HTTPS if it has certificates; gives its host and port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    configuration = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}},
        "http": {"addr": host, **_tls(certificates)},
    }
    (directory / "config.yml").write_text(json.dumps(configuration))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(directory / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(host)
        yield host
    finally:
        process.terminate()
        process.wait(timeout=10)


def copy_image(source: str, destination: str, *options: str) -> None:
    """Copies an image between two places, both in the spelling of containers-transports."""
    command = ["skopeo", "--insecure-policy", "copy", *options]
    if destination.startswith("docker://"):
        command.append("--dest-tls-verify=false")
    subprocess.run([*command, source, destination], check=True, capture_output=True, timeout=60)


def _tls(certificates: Certificates | None) -> dict[str, object]:
    if certificates is None:
        return {}
    return {"tls": {"certificate": str(certificates.chain), "key": str(certificates.key)}}


def _wait_for(host: str) -> None:
    address, _, port = host.rpartition(":")
    end = time.monotonic() + READY_DEADLINE
    while True:
        try:
            with socket.create_connection((address, int(port)), 1):
                return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
