from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cupola.host.checks import Check, docker_checks, missing, oci_checks, optional_checks
from cupola.host.machine import DockerEngine, Rootless
from tests.unit.host.machines import ENGINE, LAPTOP, LEGACY, NO_ENGINE, NO_GROUPS, SERVER, SOCKET


def named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_machine_that_has_everything_lacks_nothing() -> None:
    everything = [*oci_checks(SERVER), *docker_checks(SERVER, ENGINE)]
    assert missing(everything) == []
    assert all(check.verdict == "ok" and not check.fix for check in everything)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"system": "Darwin", "architecture": "arm64"}, "system", "Darwin on arm64"),
        ({"root": False}, "root", "not root"),
        ({"may_mount": False}, "mounts", "may not mount"),
        ({"kernel": "4.19.0-27-amd64"}, "kernel", "too old"),
        ({"overlayfs": False}, "overlayfs", "does not have it"),
        ({"hierarchies": NO_GROUPS}, "control groups", "none are mounted"),
        ({"hierarchies": LEGACY, "controllers": frozenset({"memory", "cpu"})}, "control groups", "pids, freezer"),
        ({"programs": {}}, "OCI runtime", "no crun or runc"),
        ({"programs": {"runsc": "1"}}, "OCI runtime", "no crun or runc"),
        ({"seccomp": False}, "seccomp", "cannot filter"),
    ],
)
def test_what_is_missing_is_named_with_its_fix(change: dict[str, Any], name: str, said: str) -> None:
    lacks = missing(oci_checks(replace(SERVER, **change)))
    assert [check.name for check in lacks] == [name]
    assert said in lacks[0].finding
    assert lacks[0].fix


def test_the_runtime_of_the_setting_is_the_one_that_counts() -> None:
    assert named(oci_checks(SERVER, "crun"), "OCI runtime").finding == "crun 1.21"
    lacking = named(oci_checks(SERVER, "/opt/youki"), "OCI runtime")
    assert (lacking.verdict, lacking.finding) == ("missing", "no /opt/youki on the PATH")
    assert "oci_runtime" in lacking.fix


def test_an_older_kernel_makes_sandboxes_but_not_ahead() -> None:
    checks = oci_checks(replace(SERVER, kernel="5.10.0"))
    assert missing(checks) == []
    assert named(checks, "kernel").verdict == "optional"


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        (NO_ENGINE, f"{SOCKET}: there is no such socket"),
        (DockerEngine(SOCKET, problem="this user may not use it"), "this user may not use it"),
        (
            DockerEngine(SOCKET, "19.03", ("it is version 19.03", "it has no seccomp")),
            "it is version 19.03; it has no sec",
        ),
    ],
)
def test_an_engine_that_will_not_do_is_missing(engine: DockerEngine, said: str) -> None:
    (lacking,) = missing(docker_checks(SERVER, engine))
    assert lacking.name == "Docker engine"
    assert said in lacking.finding


def test_nothing_optional_is_ever_missing() -> None:
    bare = replace(
        SERVER, programs={}, rootless=Rootless(user_namespaces=False, sub_ids=False, controllers=frozenset())
    )
    checks = optional_checks(bare)
    assert {check.verdict for check in checks} == {"optional"}
    assert all(check.fix for check in checks)


def test_what_a_mode_without_root_would_lack_is_told() -> None:
    checks = optional_checks(replace(LAPTOP, rootless=Rootless(True, False, frozenset({"pids"}))))
    assert "no ids to give" in named(checks, "user namespaces").finding
    assert "memory, cpu" in named(checks, "delegated control groups").finding
    assert "Delegate=yes" in named(checks, "delegated control groups").fix
