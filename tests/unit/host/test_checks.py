from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cupola.host.checks import Check, docker_checks, missing, oci_checks, optional_checks
from cupola.host.machine import DockerEngine
from tests.unit.host.machines import CAPABLE, ENGINE, LAPTOP, LEGACY, NO_ENGINE, NO_GROUPS, SERVER, SOCKET


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
    checks = optional_checks(replace(SERVER, programs={}))
    assert {check.verdict for check in checks} == {"optional"}
    assert all(check.fix for check in checks)


def test_an_ordinary_user_to_whom_everything_is_given_lacks_a_network_only() -> None:
    checks = oci_checks(LAPTOP)
    assert missing(checks) == []
    assert [check.name for check in checks if check.verdict != "ok"] == ["network"]


@pytest.mark.parametrize(
    ("change", "name", "said", "fix"),
    [
        (
            {"problem": "it cannot be made (No space left on device)", "forbidding": ("user.max_user_namespaces=0",)},
            "user namespaces",
            "user.max_user_namespaces=0",
            "sysctl -w user.max_user_namespaces=10000",
        ),
        (
            {
                "problem": "nothing can be mounted in it",
                "forbidding": ("kernel.apparmor_restrict_unprivileged_userns=1",),
            },
            "user namespaces",
            "nothing can be mounted in it: kernel.apparmor",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ({"problem": "/proc cannot be mounted in it"}, "user namespaces", "/proc cannot be", "outside of a container"),
        ({"lacking": ("newuidmap", "newgidmap")}, "mapping of ids", "no newuidmap and newgidmap", "apt install uidmap"),
        ({"ids": (65536, 0)}, "subordinate ids", "no line in /etc/subgid", "usermod --add-subuids"),
    ],
)
def test_what_an_ordinary_user_is_missing_is_named_with_its_fix(
    change: dict[str, Any], name: str, said: str, fix: str
) -> None:
    (lacking,) = missing(oci_checks(replace(LAPTOP, rootless=replace(CAPABLE, **change))))
    assert lacking.name == name
    assert said in lacking.finding
    assert fix in lacking.fix


def test_without_delegated_control_groups_there_are_fewer_limits() -> None:
    def control_groups(*controllers: str) -> Check:
        without = replace(LAPTOP, rootless=replace(CAPABLE, controllers=frozenset(controllers)))
        assert missing(oci_checks(without)) == []
        return named(oci_checks(without), "control groups")

    assert "no limits of memory, pids, cpu and no freezing" in control_groups().finding
    assert "Delegate=yes" in control_groups().fix
    assert control_groups("memory", "freezer").finding == "pids, cpu not delegated to this user: no limits of pids, cpu"
    assert control_groups("memory", "pids", "cpu").finding.endswith(": no freezing of idle sandboxes")


def test_few_subordinate_ids_do_for_some_images() -> None:
    few = named(oci_checks(replace(LAPTOP, rootless=replace(CAPABLE, ids=(1000, 1000)))), "subordinate ids")
    assert few.verdict == "optional"
    assert "images that use higher numbers cannot be unpacked" in few.finding


def test_without_root_the_runtime_is_crun() -> None:
    assert missing(oci_checks(LAPTOP, "crun")) == []
    (refused,) = missing(oci_checks(LAPTOP, "runc"))
    assert "crun only" in refused.finding
    (absent,) = missing(oci_checks(replace(LAPTOP, programs={"runc": "1"})))
    assert absent.fix == "apt install crun"
