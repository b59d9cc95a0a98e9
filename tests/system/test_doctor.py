"""`cupola doctor` as a user runs it, beside an engine and beside a running server."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.engine import PrivateEngine
from tests.system.platform import Platform


def test_it_shows_every_check_and_how_to_mend_what_is_missing(tmp_path: Path) -> None:
    done = Platform(tmp_path / "data", {"CUPOLA_DOCKER_SOCKET": str(tmp_path / "none")}).run("doctor")
    assert (done.returncode == 0) == ("`cupola up` takes the oci driver" in done.stdout)
    for name in ("control groups", "overlayfs", "OCI runtime", "seccomp", "data folder", "gVisor"):
        assert name in done.stdout
    assert f"{tmp_path}/none: there is no such socket\n" in done.stdout
    assert "-> apt install docker.io" in done.stdout
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="an engine of its own needs root")
def test_it_finds_an_engine_and_says_which_driver_up_would_take(tmp_path: Path, engine: PrivateEngine) -> None:
    without_runtime = {"CUPOLA_DOCKER_SOCKET": str(engine.socket), "CUPOLA_OCI_RUNTIME": "no-such-runtime"}
    done = Platform(tmp_path / "data", without_runtime).run("doctor", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["driver"] == "docker"
    assert "no no-such-runtime on the PATH" in found["conclusion"]
    verdicts = {(check["group"], check["name"]): check["verdict"] for check in found["checks"]}
    assert verdicts["driver docker", "Docker engine"] == "ok"
    assert verdicts["driver oci", "OCI runtime"] == "missing"
    assert not (tmp_path / "data").exists()


def test_without_any_driver_it_ends_with_1(tmp_path: Path) -> None:
    nothing = {"CUPOLA_DOCKER_SOCKET": str(tmp_path / "none"), "CUPOLA_OCI_RUNTIME": "no-such-runtime"}
    platform = Platform(tmp_path / "data", nothing)
    done = platform.run("doctor")
    assert done.returncode == 1
    assert done.stdout.endswith("No driver can make sandboxes here.\n")
    refused = platform.run("up", "--https-port", "0", "--http-port", "0")
    assert refused.returncode == 1
    assert "no no-such-runtime on the PATH" in refused.stderr
    assert "there is no such socket" in refused.stderr
    assert "cupola doctor" in refused.stderr


def test_a_running_server_is_told_from_a_taken_port(start_platform: Callable[..., Platform]) -> None:
    platform = start_platform()
    said = platform.run("doctor").stdout
    assert f"of the running server (process {platform.pid})" in said
    assert "valid until" in said
