"""Which control groups are the user's, told from the files that the kernel shows."""

from __future__ import annotations

from pathlib import Path

from cupola.sandbox.oci.cgroup import Hierarchies, find_hierarchies
from cupola.sandbox.oci.delegation import find_delegation

MOUNTS = """\
20 1 0:20 / /sys rw - sysfs sysfs rw
21 20 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw
22 21 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
23 21 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def group(path: Path, controllers: str | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "cgroup.procs").touch()
    if controllers is not None:
        (path / "cgroup.controllers").write_text(controllers)
    return path


def test_version_1_groups_of_the_user_are_found_in_each_hierarchy(tmp_path: Path) -> None:
    hierarchies = Hierarchies(None, {name: tmp_path / name for name in ("memory", "cpu,cpuacct", "cpu", "pids")}, None)
    memory, cpu = group(tmp_path / "memory" / "mine"), group(tmp_path / "cpu" / "other")
    found = find_delegation(hierarchies, "5:name=systemd:/mine\n4:memory:/mine\n3:cpu,cpuacct:/other\n2:pids:/gone\n")
    assert found.groups == {"memory": memory, "cpu,cpuacct": cpu}
    assert found.controllers == {"memory", "cpu"}


def test_a_version_2_group_of_the_user_freezes_whatever_it_limits(tmp_path: Path) -> None:
    unified = group(tmp_path / "user" / "scope", "memory io pids\n")
    found = find_delegation(Hierarchies(tmp_path, {}, None), "0::/user/scope\n")
    assert (found.unified, found.groups) == (unified, {})
    assert found.controllers == {"memory", "pids", "freezer"}


def test_where_no_control_groups_are_mounted_nothing_is_delegated() -> None:
    assert find_delegation(Hierarchies(None, {}, None), "4:memory:/\n0::/\n").controllers == frozenset()


def test_hierarchies_below_what_was_mounted_over_them_do_not_count() -> None:
    assert set(find_hierarchies(MOUNTS).controllers) == {"memory"}
    covered = (
        MOUNTS
        + "30 21 0:30 / /sys/fs/cgroup rw - tmpfs none rw\n31 30 0:22 /x /sys/fs/cgroup/pids rw - cgroup c rw,pids\n"
    )
    assert find_hierarchies(covered) == Hierarchies(None, {"pids": Path("/sys/fs/cgroup/pids")}, None)
