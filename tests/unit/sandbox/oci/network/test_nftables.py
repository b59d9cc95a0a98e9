from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from cupola.sandbox.oci.network import nftables
from cupola.sandbox.oci.network.nftables import Nftables, NftablesError
from tests.unit.sandbox.oci.network.kernel import in_a_namespace, needs_root


@needs_root
def test_commands_are_applied_all_or_none() -> None:
    def work() -> None:
        rules = Nftables()
        rules.run("add table ip one\nadd set ip one names { type ifname; }")
        with pytest.raises(NftablesError, match="syntax error"):
            rules.run("add table ip two\nadd nonsense")
        with pytest.raises(NftablesError, match="No such file or directory"):
            rules.run('add table ip two\nadd element ip absent names { "a" }')
        assert rules.run("list tables").split() == ["table", "ip", "one"]
        rules.close()

    in_a_namespace(work)


@needs_root
def test_an_owned_table_withstands_others_and_goes_with_its_owner() -> None:
    def work() -> None:
        owner, other = Nftables(), Nftables()
        owner.run("table inet mine { flags owner; }")
        other.run("table inet theirs { }\nflush ruleset")
        assert "table inet mine" in other.run("list tables")
        with pytest.raises(NftablesError):
            other.run("delete table inet mine")
        owner.close()
        owner.close()
        assert other.run("list tables") == ""
        with pytest.raises(NftablesError, match="is closed"):
            owner.run("list tables")
        other.close()

    in_a_namespace(work)


@needs_root
def test_programs_that_we_start_do_not_inherit_the_connection() -> None:
    def work() -> None:
        before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
        rules = Nftables()
        rules.run("list tables")
        for entry in set(os.listdir("/proc/self/fd")) - before:  # noqa: PTH208
            if Path("/proc/self/fd", entry).exists():
                assert fcntl.fcntl(int(entry), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        rules.close()

    in_a_namespace(work)


def test_without_the_library_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "LIBRARY", "libabsent.so.1")
    with pytest.raises(NftablesError, match=r"libabsent\.so\.1 is missing .*apt install nftables"):
        Nftables()
