from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cupola.telemetry import output as module
from cupola.telemetry.output import (
    LINE_LIMIT,
    TAIL_LINES,
    LineSplitter,
    OutputTail,
    SessionLog,
    is_status,
    read_entries,
    status_entry,
)

STAMP = "2030-01-02T03:04:05.678Z"


@pytest.fixture
def log(tmp_path: Path) -> SessionLog:
    return SessionLog(tmp_path / "logs", clock=lambda: STAMP)


def messages(directory: Path) -> list[str]:
    return [json.loads(entry)["message"] for entry in read_entries(directory, 10_000)]


# Lines


def test_lines_are_whole_whatever_the_chunks() -> None:
    splitter = LineSplitter()
    assert splitter.feed("stdout", b"on") == []
    assert splitter.feed("stdout", b"e\ntwo\nthr") == ["one", "two"]
    assert splitter.feed("stdout", b"ee\n") == ["three"]
    assert splitter.rest() == []


def test_streams_do_not_mix() -> None:
    splitter = LineSplitter()
    splitter.feed("stdout", b"out")
    assert splitter.feed("stderr", b"err\nmore") == ["err"]
    assert splitter.feed("stdout", b"put\n") == ["output"]
    assert splitter.rest() == [("stderr", "more")]
    assert splitter.rest() == []


def test_the_end_of_a_line_is_not_part_of_it() -> None:
    assert LineSplitter().feed("stdout", b"dos\r\nunix\n\r\nlast\n") == ["dos", "unix", "", "last"]


def test_a_carriage_return_inside_a_line_stays() -> None:
    assert LineSplitter().feed("stdout", b"10%\r20%\n") == ["10%\r20%"]


def test_bytes_that_are_no_text_are_marked() -> None:
    assert LineSplitter().feed("stdout", b"\xff\xfe caf\xc3\xa9\n") == ["\ufffd\ufffd caf\u00e9"]


@pytest.mark.parametrize("character", ["x", "\u00e9", "\u4e2d", "\U0001f600"])
@pytest.mark.parametrize("shift", range(4))
def test_a_long_line_is_cut_between_characters(character: str, shift: int) -> None:
    text = "y" * shift + character * LINE_LIMIT
    for data in (text.encode() + b"\n", text.encode()):
        splitter = LineSplitter()
        pieces = [*splitter.feed("stdout", data), *(rest for _, rest in splitter.rest())]
        assert "".join(pieces) == text
        assert all(LINE_LIMIT - 4 < len(piece.encode()) <= LINE_LIMIT for piece in pieces[:-1])


@pytest.mark.parametrize("byte", [b"\x80", b"\xff", b"\xc3", b"\xf0", b"\x1b"])
def test_an_entry_is_bounded_whatever_it_is_made_of(log: SessionLog, tmp_path: Path, byte: bytes) -> None:
    log.output("stdout", byte * (3 * LINE_LIMIT) + b"\n")
    log.status("\U0001f600" * LINE_LIMIT)
    log.close()
    entries = read_entries(tmp_path / "logs", 100)
    assert len(entries) >= 4
    assert all(len(entry) <= 6 * LINE_LIMIT + 100 for entry in entries)


def test_a_character_that_came_in_two_chunks_is_whole() -> None:
    splitter = LineSplitter()
    splitter.feed("stdout", b"caf\xc3")
    assert splitter.feed("stdout", b"\xa9\n") == ["caf\u00e9"]


def test_an_over_long_line_is_cut_into_lines_and_nothing_of_it_is_lost() -> None:
    line = bytes(97 + number % 26 for number in range(2 * LINE_LIMIT + 5))
    for ends in (b"\n", b"\r\n"):
        lines = LineSplitter().feed("stdout", line + ends)
        assert [len(text) for text in lines] == [LINE_LIMIT, LINE_LIMIT, 5]
        assert "".join(lines).encode() == line


def test_a_line_without_an_end_is_cut_before_it_ends() -> None:
    splitter = LineSplitter()
    assert splitter.feed("stdout", b"x" * LINE_LIMIT) == []
    assert splitter.feed("stdout", b"y") == ["x" * LINE_LIMIT]
    assert splitter.feed("stdout", b"\n") == ["y"]


@given(
    parts=st.lists(
        st.sampled_from([b"", b"a", b"bc", b"\n", b"\r\n", b"d" * LINE_LIMIT, b"\xc3", b"\xa9"]), max_size=12
    )
)
def test_lines_do_not_depend_on_how_the_bytes_arrive(parts: list[bytes]) -> None:
    whole, pieces = LineSplitter(), LineSplitter()
    expected = [*whole.feed("stdout", b"".join(parts)), *(text for _, text in whole.rest())]
    found = [line for part in parts for line in pieces.feed("stdout", part)]
    assert [*found, *(text for _, text in pieces.rest())] == expected


# Files


def test_an_entry_is_one_json_object_per_line(log: SessionLog, tmp_path: Path) -> None:
    log.output("stdout", b"hello\n")
    log.output("stderr", b"oh\n")
    log.status("The sandbox is ready.")
    assert [json.loads(entry) for entry in read_entries(tmp_path / "logs", 10)] == [
        {"timestamp": STAMP, "stream": "stdout", "message": "hello"},
        {"timestamp": STAMP, "stream": "stderr", "message": "oh"},
        {"timestamp": STAMP, "stream": "status", "message": "The sandbox is ready."},
    ]
    log.close()


@pytest.mark.parametrize("text", ['"}\r{"message": "forged', "\x1b[31mred", "\u2028\u2029\x85", "\ud7ff\u202e", "\0"])
def test_nothing_that_is_printed_can_forge_an_entry_or_steer_a_terminal(
    log: SessionLog, tmp_path: Path, text: str
) -> None:
    log.output("stdout", text.encode() + b"\n")
    log.close()
    raw = (tmp_path / "logs" / "console.jsonl").read_bytes()
    assert raw.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in raw[:-1])
    assert messages(tmp_path / "logs") == [text]


def test_a_line_without_an_end_is_written_when_the_log_is_closed(log: SessionLog, tmp_path: Path) -> None:
    log.output("stdout", b"unfinished")
    assert messages(tmp_path / "logs") == []
    log.close()
    assert messages(tmp_path / "logs") == ["unfinished"]


def test_a_status_comes_after_what_was_printed_before_it(log: SessionLog, tmp_path: Path) -> None:
    log.output("stdout", b"unfinished")
    log.status("stopped")
    log.close()
    assert messages(tmp_path / "logs") == ["unfinished", "stopped"]


def test_a_log_that_is_opened_again_goes_on(tmp_path: Path) -> None:
    for number in range(3):
        log = SessionLog(tmp_path)
        log.output("stdout", b"%d\n" % number)
        log.close()
    assert messages(tmp_path) == ["0", "1", "2"]


def test_real_entries_are_stamped_in_utc(tmp_path: Path) -> None:
    log = SessionLog(tmp_path)
    log.status("now")
    log.close()
    stamp = json.loads(read_entries(tmp_path, 1)[0])["timestamp"]
    assert stamp.endswith("Z")
    assert len(stamp) == len(STAMP)


def test_the_files_are_bounded_and_the_newest_entries_are_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT", 2000)
    log = SessionLog(tmp_path)
    for number in range(500):
        log.output("stdout", b"line %d\n" % number)
        assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())
    log.close()
    assert {path.name for path in tmp_path.iterdir()} == {"console.jsonl", "console.1.jsonl"}
    kept = messages(tmp_path)
    assert kept == [f"line {number}" for number in range(500 - len(kept), 500)]
    assert len(kept) > 20


def test_a_file_that_is_full_already_is_rotated_after_opening_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FILE_LIMIT", 1000)
    for number in range(50):
        log = SessionLog(tmp_path)
        log.output("stdout", b"line %d\n" % number)
        log.close()
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert messages(tmp_path)[-1] == "line 49"


def test_the_last_entries_are_read_over_both_files(tmp_path: Path) -> None:
    entries = [f'{{"message": "{number}"}}' for number in range(5)]
    (tmp_path / "console.1.jsonl").write_text("".join(f"{entry}\n" for entry in entries[:3]))
    (tmp_path / "console.jsonl").write_text("".join(f"{entry}\n" for entry in entries[3:]))
    for last in (10, 5, 3, 1):
        assert read_entries(tmp_path, last) == entries[-last:]
    assert read_entries(tmp_path, 0) == []


@pytest.mark.parametrize("cut", ['{"message": "c', "", "\n"])
def test_an_entry_that_was_cut_off_is_left_out(tmp_path: Path, cut: str) -> None:
    (tmp_path / "console.jsonl").write_text('{"message": "whole"}\n' + cut)
    assert messages(tmp_path) == ["whole"]


def test_a_session_that_never_ran_has_no_entries(tmp_path: Path) -> None:
    assert read_entries(tmp_path / "missing", 10) == []


# Tails


def test_the_tail_is_the_last_output_without_the_platforms_own_messages(log: SessionLog) -> None:
    log.status("Starting.")
    log.output("stdout", b"".join(b"%d\n" % number for number in range(TAIL_LINES + 10)))
    assert log.tail() == tuple(str(number) for number in range(10, TAIL_LINES + 10))
    log.close()


def test_the_tail_has_a_last_line_without_an_end(log: SessionLog, tmp_path: Path) -> None:
    log.output("stderr", b"first\nno end")
    assert log.tail() == ("first", "no end")
    log.close()
    assert messages(tmp_path / "logs") == ["first", "no end"]


def test_the_tail_of_output_that_is_not_kept() -> None:
    tail = OutputTail()
    assert tail.tail() == ()
    tail.output("stdout", b"".join(b"%d\n" % number for number in range(TAIL_LINES)))
    tail.output("stderr", b"no end")
    assert tail.tail() == (*(str(number) for number in range(1, TAIL_LINES)), "no end")


# Followers


async def take(following: AsyncGenerator[str], number: int) -> list[str]:
    return [json.loads(await anext(following))["message"] for _ in range(number)]


async def test_a_follower_gets_what_comes_and_ends_with_the_log(log: SessionLog) -> None:
    log.output("stdout", b"before\n")
    following = log.follow()
    first = asyncio.ensure_future(take(following, 2))
    await asyncio.sleep(0)
    log.output("stdout", b"one\ntwo\n")
    assert await first == ["one", "two"]
    log.output("stdout", b"rest")
    log.close()
    assert [json.loads(entry)["message"] async for entry in following] == ["rest"]


async def test_every_follower_gets_every_entry_and_one_that_left_gets_none(log: SessionLog) -> None:
    followers = [log.follow() for _ in range(3)]
    waiting = [asyncio.ensure_future(take(follower, 1)) for follower in followers]
    await asyncio.sleep(0)
    log.output("stdout", b"one\n")
    assert await asyncio.gather(*waiting) == [["one"]] * 3
    await followers[0].aclose()
    assert len(log._followers) == 2
    log.output("stdout", b"two\n")
    assert await take(followers[1], 1) == ["two"]
    log.close()
    assert [json.loads(entry)["message"] async for entry in followers[2]] == ["two"]


async def test_following_a_log_that_is_closed_ends_at_once(log: SessionLog) -> None:
    log.close()
    async with asyncio.timeout(20):
        assert [entry async for entry in log.follow()] == []


async def test_a_slow_follower_loses_the_oldest_entries_and_still_sees_the_end(
    log: SessionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(json.dumps({"timestamp": STAMP, "stream": "stdout", "message": "99"}))
    monkeypatch.setattr(module, "FOLLOWER_BACKLOG", 5 * size)
    following = log.follow()
    first = asyncio.ensure_future(take(following, 1))
    await asyncio.sleep(0)
    log.output("stdout", b"first\n")
    assert await first == ["first"]
    for number in range(100):
        log.output("stdout", b"%d\n" % number)
    assert all(follower.size <= 5 * size for follower in log._followers)
    log.close()
    assert [json.loads(entry)["message"] async for entry in following] == ["95", "96", "97", "98", "99"]


# Messages of the platform


def test_the_platforms_own_messages_can_be_read_alone(log: SessionLog, tmp_path: Path) -> None:
    for number in range(5):
        log.output("stdout", b"%d\n" % number)
        log.status(f"status {number}")
    log.output("stdout", b'{"stream": "status", "message": "forged"}\n"stream": "status"\n')
    log.close()
    entries = read_entries(tmp_path / "logs", 3, only_status=True)
    assert [json.loads(entry)["message"] for entry in entries] == ["status 2", "status 3", "status 4"]


@pytest.mark.parametrize("entry", ["{}", "[]", "{broken}", '{"stream": 7}', '{"stream": "stdout"}', ""])
def test_what_is_no_message_of_the_platform_is_not_taken_for_one(entry: str) -> None:
    assert not is_status(entry)


def test_a_message_that_is_in_no_file_has_the_form_of_an_entry() -> None:
    entry = json.loads(status_entry("quiet"))
    assert (entry["stream"], entry["message"], len(entry["timestamp"])) == ("status", "quiet", len(STAMP))
    assert is_status(status_entry("quiet"))
