"""Start, stop and describe the server of this machine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from cupola.domain.errors import CupolaError
from cupola.installation import DataFolder, ServerState
from cupola.settings import load

START_DEADLINE = 60.0
STOP_DEADLINE = 90.0
POLL = 0.02


def up(
    *,
    detach: Annotated[bool, Parameter(negative=())] = False,
    https_port: int | None = None,
    http_port: int | None = None,
    data: Path | None = None,
) -> None:
    """Start the platform.

    Parameters
    ----------
    detach
        Run in the background and return once it is ready.
    https_port
        Port for HTTPS on localhost (8443; 0 takes any free one).
    http_port
        Port for HTTP on 127.0.0.1 (8080; 0 takes any free one).
    data
        Folder for everything that is kept.
    """
    settings, _ = load({"https_port": https_port, "http_port": http_port, "data": data})
    if detach:
        _start_in_background(DataFolder(settings.data), https_port, http_port)
        return
    import logging

    from cupola.app import run

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for quiet in ("uvicorn", "alembic", "httpx2", "httpcore2"):
        logging.getLogger(quiet).setLevel(logging.WARNING)
    run(settings, _announce)


def _announce(state: ServerState) -> None:
    print(f"Cupola is ready: {state.https_url} and {state.http_url} (process {state.pid}).")
    print('In another shell: eval "$(cupola env)"', flush=True)


def _start_in_background(folder: DataFolder, https_port: int | None, http_port: int | None) -> None:
    folder.create()
    if folder.is_locked():
        raise CupolaError("already_running", f"A server is already running on {folder.path}; `cupola down` stops it.")
    arguments = [sys.executable, "-m", "cupola", "up", "--data", str(folder.path)]
    if https_port is not None:
        arguments += ["--https-port", str(https_port)]
    if http_port is not None:
        arguments += ["--http-port", str(http_port)]
    with folder.server_log.open("ab") as log:
        began = log.tell()
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    end = time.monotonic() + START_DEADLINE
    while time.monotonic() < end:
        code = process.poll()
        if code is not None:
            with folder.server_log.open("rb") as log:
                log.seek(began)
                said = log.read().decode(errors="replace").strip()
            raise CupolaError("start_failed", said.removeprefix("cupola: ") or f"The server ended with code {code}.")
        state = folder.running_server()
        if state is not None:
            print(f"Cupola is ready: {state.https_url} and {state.http_url} (process {state.pid}).")
            print('Next: eval "$(cupola env)". `cupola logs` shows its log, `cupola down` stops it.')
            return
        time.sleep(POLL)
    process.terminate()
    raise CupolaError(
        "start_failed", f"The server was not ready after {START_DEADLINE:.0f} s; see {folder.server_log}."
    )


def down(*, data: Path | None = None) -> None:
    """Stop the platform, wherever it was started; sandboxes end, files stay.

    Parameters
    ----------
    data
        Folder of the server to stop.
    """
    folder = _folder(data)
    if not folder.is_locked():
        print(f"No server is running on {folder.path}.")
        return
    end = time.monotonic() + STOP_DEADLINE
    signalled = 0.0
    while folder.is_locked():
        state = folder.running_server()
        if state is not None and signalled == 0.0:
            os.kill(state.pid, signal.SIGTERM)
            signalled = time.monotonic()
        if time.monotonic() > end:
            raise CupolaError(
                "stop_failed",
                f"The server did not stop within {STOP_DEADLINE:.0f} s; see {folder.server_log}.",
            )
        time.sleep(POLL)
    print("Cupola has stopped.")


def env(*, data: Path | None = None) -> None:
    """Print what a shell needs: eval "$(cupola env)" makes every official client work.

    Parameters
    ----------
    data
        Folder of the server to use.
    """
    for name, value in environment(_folder(data)).items():
        print(f"export {name}={shlex.quote(value)}")


def environment(folder: DataFolder, project: str = "default") -> dict[str, str]:
    """The variables by which clients find the server, trust it and get a token (wire contract, section 2.4)."""
    state = running_server(folder)
    endpoint = f"{state.https_url}/api/projects/{project}"
    bundle = str(folder.certificate_bundle)
    return {
        "FOUNDRY_PROJECT_ENDPOINT": endpoint,
        "AZURE_AI_PROJECT_ENDPOINT": endpoint,
        "REQUESTS_CA_BUNDLE": bundle,
        "SSL_CERT_FILE": bundle,
        "IDENTITY_ENDPOINT": f"{state.http_url}/msi/token",
        "IDENTITY_HEADER": folder.administrator_secret.read_text().strip(),
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
    }


def running_server(folder: DataFolder) -> ServerState:
    """The server of a folder. Raises CupolaError with what to do when there is none that is ready."""
    state = folder.running_server()
    if state is not None:
        return state
    if folder.is_locked():
        raise CupolaError("not_ready", f"The server on {folder.path} is still starting; try again in a moment.")
    raise CupolaError("not_running", f"No server is running on {folder.path}; start one with `cupola up --detach`.")


def config() -> None:
    """Print every setting with its value and where that comes from, as TOML."""
    _, values = load()
    for value in values:
        print(f"# {value.help}  [{value.source}]\n{value.name} = {_toml(value.value)}\n")
    print("# Set one with CUPOLA_<NAME>, or in the file /etc/cupola/cupola.toml (another with CUPOLA_CONFIG).")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {json.dumps(item)}" for key, item in value.items()) + "}"
    return json.dumps(list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value)


def _folder(data: Path | None) -> DataFolder:
    settings, _ = load({"data": data})
    return DataFolder(settings.data)
