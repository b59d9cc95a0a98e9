"""The merged tar of an image's layers holds what overlayfs would show."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from cupola.sandbox.docker.rootfs import OPAQUE, PIECE, merged_tar

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="whiteouts and owners need root")


def layer(directory: Path, **files: str | None) -> Path:
    """A layer with files by path (`__` for `/`); None makes a whiteout."""
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
        else:
            path.write_text(content)
    directory.mkdir(exist_ok=True)
    return directory


def archive(*layers: Path) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(b"".join(merged_tar(layers))))


def shown(*layers: Path) -> dict[str, str]:
    """The files of the merged tar, by name, with their content."""
    with archive(*layers) as tar:
        files = {member.name.removeprefix("./"): tar.extractfile(member) for member in tar if member.isreg()}
        return {name: file.read().decode() for name, file in files.items() if file is not None}


def test_upper_layers_win_and_directories_are_merged(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", etc__passwd="old", etc__group="old", bin__tool="old")
    high = layer(tmp_path / "high", etc__passwd="new", etc__shadow="new")
    assert shown(low, high) == {"etc/passwd": "new", "etc/group": "old", "etc/shadow": "new", "bin/tool": "old"}


def test_a_whiteout_hides_a_file_and_a_whole_directory(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", etc__passwd="x", lib__deep__file="x", kept="x")
    high = layer(tmp_path / "high", etc__passwd=None, lib=None, never_there=None)
    assert shown(low, high) == {"kept": "x"}
    with archive(low, high) as tar:
        assert sorted(tar.getnames()) == [".", "./etc", "./kept"]


def test_what_a_whiteout_hid_may_come_back_above(tmp_path: Path) -> None:
    layers = [
        layer(tmp_path / "1", data__old="x"),
        layer(tmp_path / "2", data=None),
        layer(tmp_path / "3", data__new="y"),
    ]
    assert shown(*layers) == {"data/new": "y"}


def test_an_opaque_directory_hides_what_is_below_in_it(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", data__old="x", data__sub__old="x", other__old="x")
    high = layer(tmp_path / "high", data__sub__new="y")
    os.setxattr(high / "data", OPAQUE, b"y")
    assert shown(low, high) == {"data/sub/new": "y", "other/old": "x"}


def test_a_file_takes_the_place_of_a_directory_and_the_other_way_round(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", one__below="x", two="x")
    high = layer(tmp_path / "high", one="y", two__below="y")
    assert shown(low, high) == {"one": "y", "two/below": "y"}
    top = layer(tmp_path / "top", one__again="z")
    assert shown(low, high, top) == {"one/again": "z", "two/below": "y"}


def test_owners_modes_times_and_links_are_kept(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", bin__su="x", tmp__x="x")
    os.chown(low / "bin" / "su", 7, 3_000_000)
    (low / "bin" / "su").chmod(0o4755)
    (low / "tmp").chmod(0o1777)
    os.utime(low / "bin" / "su", (1_234_567_890, 1_234_567_890))
    os.link(low / "bin" / "su", low / "bin" / "sudo")
    (low / "bin" / "sh").symlink_to("/etc/passwd")
    with archive(low) as tar:
        members = {member.name: member for member in tar}
    plain, linked = sorted((members["./bin/su"], members["./bin/sudo"]), key=lambda member: member.islnk())
    assert (plain.uid, plain.gid, plain.mode, plain.mtime) == (7, 3_000_000, 0o4755, 1_234_567_890)
    assert linked.islnk()
    assert linked.linkname == plain.name
    assert members["./tmp"].mode == 0o1777
    assert members["./bin/sh"].linkname == "/etc/passwd"


def test_metadata_of_a_merged_directory_is_that_of_the_topmost(tmp_path: Path) -> None:
    low, high = layer(tmp_path / "low", home__a="x"), layer(tmp_path / "high", home__b="x")
    (low / "home").chmod(0o700)
    (high / "home").chmod(0o755)
    with archive(low, high) as tar:
        assert tar.getmember("./home").mode == 0o755


def test_no_link_leads_out_of_a_layer(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    low, high = layer(tmp_path / "low", data__x="x"), layer(tmp_path / "high")
    (high / "data").symlink_to(tmp_path / "secret")
    assert shown(low, high) == {}


def test_names_that_are_not_utf_8_and_long_ones_survive(tmp_path: Path) -> None:
    low = layer(tmp_path / "low")
    for name in (b"caf\xe9", "café".encode(), b"n" * 200):
        (low / os.fsdecode(name)).write_text("x")
    with archive(low) as tar:
        assert {os.fsencode(name) for name in tar.getnames()} == {
            b".",
            b"./caf\xe9",
            "./café".encode(),
            b"./" + b"n" * 200,
        }


def test_large_files_come_in_pieces_of_bounded_size(tmp_path: Path) -> None:
    low = layer(tmp_path / "low")
    content = os.urandom(3 * PIECE + 17)
    (low / "large").write_bytes(content)
    pieces = list(merged_tar([low]))
    assert max(map(len, pieces)) <= 2 * PIECE + 4096
    with archive(low) as tar:
        file = tar.extractfile("./large")
        assert file is not None
        assert file.read() == content
