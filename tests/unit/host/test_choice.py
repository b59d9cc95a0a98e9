from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.host.checks import docker_checks, oci_checks
from cupola.host.choice import choose, driver_checks
from cupola.host.machine import DockerEngine, Machine
from tests.unit.host.machines import ENGINE, LAPTOP, NO_ENGINE, SERVER


def chosen(machine: Machine, engine: DockerEngine) -> tuple[str, str]:
    choice = choose([("oci", oci_checks(machine)), ("docker", docker_checks(machine, engine))])
    return choice.driver, choice.reason


def test_oci_is_taken_where_it_can_be_even_beside_an_engine() -> None:
    assert chosen(SERVER, ENGINE)[0] == "oci"


def test_docker_is_taken_where_oci_lacks_something_and_the_reason_is_told() -> None:
    driver, reason = chosen(replace(SERVER, programs={}), ENGINE)
    assert driver == "docker"
    assert reason == "oci cannot be used (no crun or runc on the PATH)"


def test_where_neither_can_be_used_each_lack_and_fix_is_named_once() -> None:
    with pytest.raises(CupolaError) as caught:
        chosen(replace(LAPTOP, programs={}, architecture="aarch64"), NO_ENGINE)
    said = caught.value.message
    assert caught.value.code == "driver"
    assert "oci cannot be used (Linux on aarch64" in said
    assert "no crun on the PATH)" in said
    assert "docker cannot be used (Linux on aarch64" in said
    assert "this user is not root" in said
    assert "there is no such socket" in said
    assert said.count("use such a machine") == 1
    assert "apt install crun" in said


def test_the_engine_is_not_asked_where_oci_can_be_used(tmp_path: Path) -> None:
    checks = driver_checks(SERVER, "", tmp_path / "docker.sock")
    assert choose(checks).driver == "oci"
    assert [name for name, _ in checks] == ["docker"]
