"""What is asked of the engine for a sandbox, and which engines will do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cupola.sandbox.base import MIB, SandboxSpec
from cupola.sandbox.docker.container import container_config
from cupola.sandbox.docker.requirements import faults
from cupola.sandbox.oci.runtime_config import User

SPEC = SandboxSpec(
    name="s-1",
    layers=(),
    arguments=("python3", "main.py"),
    environment=(("PORT", "8088"), ("EMPTY", "")),
    working_directory="",
    user="",
    home=Path("/data/a:b/home"),
    files=Path("/data/a:b/files"),
    cpu=4.0,
    memory=512 * MIB,
)
VERSION = {"Version": "27.1.0", "ApiVersion": "1.46"}
INFO: dict[str, Any] = {
    "OSType": "linux",
    "Architecture": "x86_64",
    "MemoryLimit": True,
    "CpuCfsQuota": True,
    "PidsLimit": True,
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"],
}


def test_the_image_s_own_program_environment_and_user_are_asked_for() -> None:
    config = container_config(SPEC, User(1000, 50, (7, 8)), image="i:1", network="none", labels={"a": "b"})
    assert config["Image"] == "i:1"
    assert config["Entrypoint"] == ["python3", "main.py"]
    assert config["Cmd"] == []
    assert config["Env"] == ["PORT=8088", "EMPTY="]
    assert config["WorkingDir"] == "/"
    assert (config["User"], config["HostConfig"]["GroupAdd"]) == ("1000:50", ["7", "8"])
    assert config["Labels"] == {"a": "b"}


def test_every_limit_is_asked_for() -> None:
    asked = container_config(SPEC, User(0, 0), image="i", network="none", labels={})["HostConfig"]
    assert (asked["Memory"], asked["MemorySwap"]) == (512 * MIB, 512 * MIB)
    assert asked["CpuQuota"] / asked["CpuPeriod"] == 4
    assert asked["PidsLimit"] == 1024
    assert asked["CapDrop"] == ["ALL"]
    assert asked["RestartPolicy"] == {"Name": "no"}


def test_paths_with_a_colon_are_mounted_whole() -> None:
    asked = container_config(SPEC, User(0, 0), image="i", network="none", labels={})["HostConfig"]
    assert [(mount["Source"], mount["Target"]) for mount in asked["Mounts"]] == [
        ("/data/a:b/home", "/home/session"),
        ("/data/a:b/files", "/files"),
    ]


def test_an_ordinary_engine_will_do() -> None:
    assert faults(VERSION, INFO) == []


@pytest.mark.parametrize(
    ("version", "info", "said"),
    [
        ({"Version": "19.03.1", "ApiVersion": "1.40"}, {}, "version 19.03.1; Docker 20.10 or newer"),
        ({}, {"OSType": "windows"}, "windows on x86_64"),
        ({}, {"Architecture": "aarch64"}, "linux on aarch64"),
        ({}, {"MemoryLimit": False}, "cannot limit memory"),
        ({}, {"PidsLimit": False}, "cannot limit the number of processes"),
        ({}, {"SecurityOptions": None}, "no seccomp"),
        ({}, {"SecurityOptions": ["name=seccomp", "name=rootless"]}, "maps user ids"),
        ({}, {"SecurityOptions": ["name=seccomp", "name=userns"]}, "maps user ids"),
    ],
)
def test_an_engine_that_gives_less_is_refused(version: dict[str, str], info: dict[str, Any], said: str) -> None:
    found = faults({**VERSION, **version}, {**INFO, **info})
    assert len(found) == 1
    assert said in found[0]
