from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cupola.domain.errors import CupolaError
from cupola.sessions import file_listing as module
from cupola.sessions.file_listing import DirectoryNames, NamePage
from cupola.sessions.file_names import UPLOAD_PREFIX

NAMES = [b"B", b"a", b"a b", b"aa", b"b", "\u00e9".encode(), b"\xff"]
"""In order: that of their bytes."""


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    for name in NAMES:
        make(descriptor, name)
    yield descriptor
    os.close(descriptor)


def make(directory: int, name: bytes) -> None:
    os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=directory))


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every directory counts as unchanged for long enough for its names to be kept."""
    monkeypatch.setattr(module, "SETTLED_AFTER", -(10**18))


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 8, 100])
@pytest.mark.parametrize("ahead", [1, 3, 5_000])
def test_pages_are_all_names_in_order(
    directory: int, limit: int, descending: bool, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_AHEAD", ahead)
    names = DirectoryNames()
    found: list[bytes] = []
    more = True
    while more:
        page, more = names.names(directory, NamePage(limit, descending, found[-1] if found else None))
        assert len(page) == limit or not more
        found += page
    assert found == (NAMES[::-1] if descending else NAMES)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 8),
    st.booleans(),
    st.none() | st.sampled_from([*NAMES, b"aaa", b"z", b"\0"]),
    st.none() | st.sampled_from([*NAMES, b"aaa", b"z", b"\0"]),
)
def test_a_page_is_what_lies_between_its_bounds(
    directory: int, limit: int, descending: bool, after: bytes | None, before: bytes | None
) -> None:
    low, high = (before, after) if descending else (after, before)
    expected = [name for name in NAMES if (low is None or name > low) and (high is None or name < high)]
    if descending:
        expected.reverse()
    found = KEPT.names(directory, NamePage(limit, descending, after, before))
    assert found == (expected[:limit], len(expected) > limit)


KEPT = DirectoryNames()


def test_names_that_come_and_go_between_pages_are_seen(directory: int) -> None:
    names = DirectoryNames()
    assert names.names(directory, NamePage(2)) == ([b"B", b"a"], True)
    os.unlink(b"aa", dir_fd=directory)
    os.unlink(b"a", dir_fd=directory)
    make(directory, b"aaa")
    assert names.names(directory, NamePage(3, after=b"a")) == ([b"a b", b"aaa", b"b"], True)


@pytest.mark.usefixtures("settled")
def test_a_directory_that_does_not_change_is_read_once_for_many_pages(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[int] = []
    scan = os.scandir

    def counted(path: int) -> object:
        readings.append(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", counted)
    names = DirectoryNames()
    for after in (None, *NAMES):
        names.names(directory, NamePage(1, after=after))
    assert len(readings) == 1
    names.names(directory, NamePage(1, descending=True))
    assert len(readings) == 2


@pytest.mark.usefixtures("settled")
def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    names = DirectoryNames()
    for number in range(40):
        path = tmp_path / str(number)
        path.mkdir()
        descriptor = os.open(path, os.O_RDONLY)
        assert names.names(descriptor, NamePage(1)) == ([], False)
        os.close(descriptor)
    assert len(names._kept) == module.KEPT_DIRECTORIES


def test_uploads_under_way_are_not_listed(directory: int) -> None:
    make(directory, UPLOAD_PREFIX + b"1")
    assert DirectoryNames().names(directory, NamePage(100)) == (NAMES, False)


def test_a_directory_that_is_too_large_is_refused(directory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRY_LIMIT", len(NAMES) - 1)
    with pytest.raises(CupolaError) as caught:
        DirectoryNames().names(directory, NamePage(1))
    assert (caught.value.code, caught.value.status) == ("bad_request", 400)
    monkeypatch.setattr(module, "ENTRY_LIMIT", len(NAMES))
    assert DirectoryNames().names(directory, NamePage(1)) == ([b"B"], True)
