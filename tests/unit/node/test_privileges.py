from __future__ import annotations

import os
from pathlib import Path

import pytest

from cupola.domain.errors import CupolaError
from cupola.node.privileges import NUMBER, ServerUser, find_server_user, give

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", ServerUser(NUMBER, NUMBER)),
        ("1234", ServerUser(1234, 1234)),
        ("nobody", ServerUser(65534, 65534)),
        ("root", None),
        ("0", None),
    ],
)
def test_the_user_is_the_one_of_the_setting(setting: str, expected: ServerUser | None) -> None:
    assert find_server_user(setting) == expected


def test_a_user_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(CupolaError, match="no user 'nobody-of-that-name' on this machine"):
        find_server_user("nobody-of-that-name")


def test_a_directory_is_given_with_what_is_in_it(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").touch()
    outside.touch()
    (folder / "link").symlink_to(outside)
    give(folder, 1234, 1235)
    for path in (folder, folder / "inner", folder / "inner" / "file", folder / "link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (1234, 1235)
    assert outside.stat().st_uid == 0
    give(folder, 0, 0)
    assert (folder / "inner" / "file").stat().st_uid == 0


def test_an_interrupted_change_of_owner_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "done").touch()
    os.chown(tmp_path / "done", 1234, 1234)
    (tmp_path / "left").touch()
    give(tmp_path, 1234, 1234)
    assert (tmp_path / "left").stat().st_uid == 1234
