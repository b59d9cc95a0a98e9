from __future__ import annotations

from pathlib import Path

from cupola.host.subordinate import Range, largest_range


def test_the_largest_range_of_a_user_by_name_or_number_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("other:1:99999999\nme:100000:1000\n1234:200000:65536\nme:5:0\nme:x:1\nme:1\n")
    assert largest_range(file, "me", 1234) == Range(200000, 65536)
    assert largest_range(file, "me", 1) == Range(100000, 1000)
    assert largest_range(file, "nobody", 1) is None


def test_without_a_file_there_is_no_range(tmp_path: Path) -> None:
    assert largest_range(tmp_path / "subuid", "me", 1234) is None
