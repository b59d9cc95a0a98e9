"""Amounts of disk space. What becomes of sandboxes that use too much is in `tests/system/test_disk.py`."""

from __future__ import annotations

import pytest

from cupola.sandbox.oci.disk import INODE_SIZE, Amount, amount_of, describe


def test_a_limit_is_exceeded_by_size_or_by_files() -> None:
    limit = amount_of(100 * INODE_SIZE)
    assert limit == Amount(100 * INODE_SIZE, 100)
    assert not limit.exceeds(limit)
    assert Amount(limit.size + 1, 0).exceeds(limit)
    assert Amount(0, 101).exceeds(limit)


def test_the_room_that_is_left_is_the_smaller_of_both() -> None:
    limit = amount_of(100 * INODE_SIZE)
    assert limit.room(Amount(40 * INODE_SIZE, 10)) == 60 * INODE_SIZE
    assert limit.room(Amount(40 * INODE_SIZE, 90)) == 10 * INODE_SIZE


def test_what_has_shrunk_does_not_hide_what_has_grown() -> None:
    assert Amount(500, 10).beyond(Amount(1000, 8)) == 2 * INODE_SIZE
    assert Amount(1500, 10).beyond(Amount(1000, 12)) == 500
    assert Amount(1, 5).most(Amount(3, 2)) == Amount(3, 5)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1000, "1000 bytes"), (64 << 20, "64 MiB"), (10 << 30, "10 GiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes_are_written_as_people_do(size: int, text: str) -> None:
    assert describe(size) == text
