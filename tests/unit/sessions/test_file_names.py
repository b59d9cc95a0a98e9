from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.domain.errors import CupolaError
from cupola.sessions.file_names import UPLOAD_PREFIX, new_upload_name, parse_name, parse_path, shown_name, shown_path

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: not {0, ord("/")} & set(name))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        (".", ()),
        ("/", ()),
        ("././/", ()),
        ("a.txt", (b"a.txt",)),
        ("/remote/data_file1.txt", (b"remote", b"data_file1.txt")),
        ("a//b/./c/", (b"a", b"b", b"c")),
        ("...", (b"...",)),
        ("..a/a..", (b"..a", b"a..")),
        ("a\\..\\b", (b"a\\..\\b",)),
        (" ", (b" ",)),
        ("caf\u00e9/\U0001f600", ("caf\u00e9".encode(), "\U0001f600".encode())),
        ("\u2025/\uff0e\uff0e/\u2024\u2024", ("\u2025".encode(), "\uff0e\uff0e".encode(), "\u2024\u2024".encode())),
        ("x" * 255, (b"x" * 255,)),
        ("a/" * 2048, (b"a",) * 2048),
    ],
)
def test_a_path_is_the_names_below_home(text: str, names: tuple[bytes, ...]) -> None:
    assert parse_path(text) == names


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("..", "`..`"),
        ("../etc/passwd", "`..`"),
        ("/a/../b", "`..`"),
        ("a/..", "`..`"),
        ("a/../../../../etc", "`..`"),
        ("a\0b", "NUL"),
        ("..\0", "NUL"),
        ("x" * 256, "255 bytes"),
        ("\u00e9" * 128, "255 bytes"),
        ("a/" * 2048 + "b", "4096 bytes"),
        ("a/.cupola-upload-x", "the platform's own"),
    ],
)
def test_a_path_that_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(CupolaError) as caught:
        parse_path(text)
    assert (caught.value.code, caught.value.status, caught.value.param) == ("bad_request", 400, "path")
    assert why in caught.value.message


@given(NAMES)
def test_every_name_on_a_disk_can_be_shown_and_read_back(name: bytes) -> None:
    shown = shown_name(name)
    assert json.loads(json.dumps(shown).encode()) == shown
    assert parse_name(shown) == name
    if name not in (b".", b"..") and not name.startswith(UPLOAD_PREFIX):
        assert parse_path(shown_path((b"a", name))) == (b"a", name)


@given(st.lists(NAMES, min_size=2, max_size=2, unique=True))
def test_different_names_are_shown_differently(names: list[bytes]) -> None:
    assert len({shown_name(name) for name in names}) == 2


@given(st.text(min_size=1))
def test_a_name_in_unicode_is_shown_as_it_is(text: str) -> None:
    private = any("\uef80" <= character <= "\uefff" for character in text)
    assert private or shown_name(text.encode(errors="replace")) == text.encode(errors="replace").decode()


def test_bytes_that_are_no_text_are_shown_as_private_characters() -> None:
    assert shown_name(b"caf\xe9.txt") == "caf\uefe9.txt"
    assert shown_name("\uefe9".encode()) == "\uefee\uefbf\uefa9"


def test_home_is_shown_as_a_dot() -> None:
    assert (shown_path(()), shown_path((b"a", b"b"))) == (".", "a/b")


def test_no_caller_can_ask_for_an_upload_under_way() -> None:
    name = new_upload_name()
    assert name != new_upload_name()
    with pytest.raises(CupolaError):
        parse_path(shown_name(name))
