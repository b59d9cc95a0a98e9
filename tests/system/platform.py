"""A running platform, started as a user would, on ports of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx2

from cupola.installation import DataFolder
from cupola.sandbox.oci.network.nftables import Nftables
from cupola.sandbox.oci.network.router import interface_name

CUPOLA = (sys.executable, "-m", "cupola")
READY_DEADLINE = 30.0
STOP_DEADLINE = 60.0


class Platform:
    """`cupola up`, or another program that serves, in a child process. `settings` are CUPOLA_* variables."""

    def __init__(
        self, data: Path, settings: Mapping[str, str] | None = None, program: Sequence[str] = (*CUPOLA, "up")
    ) -> None:
        self.data = data
        self.settings = {"CUPOLA_HTTPS_PORT": "0", "CUPOLA_HTTP_PORT": "0", **(settings or {})}
        self._program = program
        self.log = data.parent / f"{data.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def variables(self) -> dict[str, str]:
        """The environment of commands of this platform."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CUPOLA_", "FOUNDRY_"))}
        return {**clean, **self.settings, "CUPOLA_DATA": str(self.data)}

    def start(self) -> Platform:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._program,
                env=self.variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + READY_DEADLINE
        while (state := DataFolder(self.data).running_server()) is None or state.pid != self._process.pid:
            if self._process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"the server did not start:\n{self.log.read_text()}")
            time.sleep(0.02)
        return self

    @property
    def pid(self) -> int:
        """The process id of what was started: the node."""
        assert self._process is not None
        return self._process.pid

    @property
    def server(self) -> int:
        """The process id of the server, which is a child of the node unless it is the same process."""
        own = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            # Sandboxes and runtimes are children too. They run other programs, and end at any time.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{child}/cmdline").read_bytes() == own:
                    return int(child)
        return self.pid

    @property
    def processes(self) -> frozenset[int]:
        """The process ids of the server and its node."""
        return frozenset({self.pid, self.server})

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a `cupola` command."""
        return subprocess.run(
            [*CUPOLA, *arguments],
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def client_variables(self) -> dict[str, str]:
        """What `eval "$(cupola env)"` gives a shell."""
        printed = self.run("env").stdout
        exports = dict(re.findall(r"^export (\w+)=(.*)$", printed, re.MULTILINE))
        return {**self.variables, **{name: shlex.split(value)[0] for name, value in exports.items()}}

    def http(self) -> httpx2.Client:
        """An authorised HTTP client of the project, for what the official clients have no call for."""
        host, token = self.token("https://ai.azure.com")
        return httpx2.Client(
            base_url=f"{host}/api/projects/default",
            headers={"authorization": f"Bearer {token}"},
            timeout=120,
            trust_env=False,
        )

    def token(self, audience: str) -> tuple[str, str]:
        """The server's address by HTTP, and a token for an audience."""
        variables = self.client_variables()
        with httpx2.Client(trust_env=False) as anonymous:
            answer = anonymous.get(
                variables["IDENTITY_ENDPOINT"],
                params={"resource": audience},
                headers={"x-identity-header": variables["IDENTITY_HEADER"]},
            )
        return variables["IDENTITY_ENDPOINT"].removesuffix("/msi/token"), answer.json()["access_token"]

    def deploy(self, name: str, image: str, **definition: object) -> dict[str, object]:
        """Create a version and wait until it is active or failed; returns it."""
        body = {"definition": {"kind": "hosted", "image": image, "cpu": "1", "memory": "1Gi", **definition}}
        with self.http() as http:
            answer = http.post(f"/agents/{name}/versions", json=body)
            assert answer.status_code == 200, answer.text
            version: dict[str, object] = answer.json()
            end = time.monotonic() + 120
            while version["status"] == "creating" and time.monotonic() < end:
                time.sleep(0.02)
                version = http.get(f"/agents/{name}/versions/{version['version']}").json()
        return version

    def kill(self) -> None:
        """`kill -9` of the node."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def kill_server(self) -> None:
        """`kill -9` of the server; the node then ends by itself."""
        os.kill(self.server, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        """The exit code of a server that ends by itself."""
        assert self._process is not None
        return self._process.wait(STOP_DEADLINE)

    def stop(self) -> int:
        """Ctrl-C; returns the exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            # A terminal sends the signal to all processes of the group, not to the server alone.
            os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(STOP_DEADLINE)


def traces(data: Path) -> list[str]:
    """Whatever of a platform is left on this machine: processes, control groups, mounts, run directories, sandboxes."""
    name = data.joinpath("installation").read_text().replace("-", "")[:12]
    lives = DataFolder(data).is_locked()
    # Others' groups may vanish during the walk, which os.walk does not mind.
    groups = (
        Path(directory) / f"cupola-{name}"
        for directory, names, _ in os.walk("/sys/fs/cgroup")
        if f"cupola-{name}" in names
    )
    # A server that lives may have one of its own, with none for sandboxes in it.
    found = [f"group {path}" for path in groups if not lives or any(path.glob("*/"))]
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if f"cupola-{name}" in (process / "cgroup").read_text():
                found.append(f"process {process.name}")
            # The server itself has mounts of what it may reach.
            mounts = (process / "mountinfo").read_text()
            if any(f"{data}/{part}" in mounts for part in ("volumes", "trials", "sandboxes")):
                found.append(f"mount in {process.name}")
        except OSError:  # the process has ended
            continue
    run = Path("/run/cupola") / name
    found += [f"{path}" for part in ("bundles", "state") for path in (run / part).glob("[!.]*")]
    if not lives:
        found += [f"{run}"] if run.exists() else []
        found += _network_traces(name)
    sandboxes = data / "sandboxes"
    found += [str(path) for path in sandboxes.iterdir()] if sandboxes.exists() else []
    return found


def _network_traces(installation: str) -> list[str]:
    rules = Nftables()
    tables = rules.run("list tables").splitlines()
    rules.close()
    found = [table for table in tables if table.endswith(f"cupola-{installation}")]
    if interface_name(installation) in {name for _, name in socket.if_nameindex()}:
        found.append(interface_name(installation))
    return found
