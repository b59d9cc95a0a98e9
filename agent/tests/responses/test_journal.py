import asyncio
import os
from pathlib import Path

import pytest
from cupola_agent.responses.journal import Journals
from cupola_agent.responses.log import EventLog
from cupola_agent.responses.replays import SECONDS, Replays

ID = "caresp_" + "a" * 50


async def written(folder: Path, count: int) -> list[bytes]:
    log = Journals(folder).open(ID)
    for number in range(count):
        log.append("response.tick", b'{"n":%d}' % number)
    await log.written()
    return log.read(0)


def names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()]


def shorten(folder: Path, cut: int) -> None:
    (file,) = folder.iterdir()
    os.truncate(file, file.stat().st_size - cut)


def age(folder: Path) -> None:
    (file,) = folder.iterdir()
    long_ago = file.stat().st_mtime - SECONDS - 1
    os.utime(file, (long_ago, long_ago))


async def test_another_process_finds_every_event_that_a_reader_has_seen(tmp_path: Path) -> None:
    frames = await written(tmp_path, 30)
    found = Journals(tmp_path).open(ID)
    assert found.read(0) == frames
    assert found.end == 30


async def test_no_event_is_seen_before_it_is_in_the_file(tmp_path: Path) -> None:
    log = Journals(tmp_path).open(ID)
    log.append("response.tick", b"{}")
    assert log.read(0) == []
    await log.more(0, None)
    seen = log.read(0)
    assert Journals(tmp_path).open(ID).read(0) == seen
    assert len(seen) == 1
    await log.written()


@pytest.mark.parametrize("cut", [1, 2, 5, 20])
async def test_an_event_that_was_not_written_whole_is_dropped_for_good(tmp_path: Path, cut: int) -> None:
    frames = await written(tmp_path, 3)
    shorten(tmp_path, cut)
    log = Journals(tmp_path).open(ID)
    assert log.read(0) == frames[:2]
    log.append("response.tick", b'{"n":2}')
    await log.written()
    assert Journals(tmp_path).open(ID).read(0) == frames


async def test_a_journal_is_read_for_ten_minutes_and_then_removed(tmp_path: Path) -> None:
    frames = await written(tmp_path, 2)
    journals = Journals(tmp_path)
    found = journals.read(ID)
    assert found is not None
    assert found.closed
    assert found.read(0) == frames
    age(tmp_path)
    assert journals.read(ID) is None
    journals.sweep()
    assert names(tmp_path) == []


async def test_a_removed_journal_is_gone(tmp_path: Path) -> None:
    await written(tmp_path, 2)
    Journals(tmp_path).remove(ID)
    assert Journals(tmp_path).read(ID) is None


@pytest.mark.parametrize("hostile", ["caresp_../../etc/passwd", "caresp_a/b", "/etc/passwd", "caresp_\0", ""])
def test_an_id_never_leads_to_a_file_elsewhere(tmp_path: Path, hostile: str) -> None:
    journals = Journals(tmp_path / "streams")
    assert journals.read(hostile) is None
    journals.remove(hostile)
    with pytest.raises(ValueError, match="not an id"):
        journals.open(hostile)


async def test_events_go_on_when_the_file_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = Journals(tmp_path / "streams").open(ID)
    (tmp_path / "streams").rmdir()
    log.append("response.tick", b"{}")
    async with asyncio.timeout(10):
        await log.written()
    assert len(log.read(0)) == 1
    assert "could not be written" in caplog.text


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def log_of(size: int) -> EventLog:
    log = EventLog()
    log.append("response.tick", b"x" * size)
    return log


def test_a_replay_is_there_until_its_time_is_over() -> None:
    clock = Clock()
    replays = Replays(clock)
    replays.add("a", log_of(1))
    clock.now = SECONDS - 1
    assert replays.get("a") is not None
    clock.now = SECONDS
    assert replays.get("a") is None


def test_the_oldest_replays_make_room_for_newer_ones() -> None:
    replays = Replays(Clock(), max_bytes=1000)
    for name in "abc":
        replays.add(name, log_of(400))
    assert [name for name in "abc" if replays.get(name)] == ["b", "c"]


def test_a_dropped_replay_makes_room() -> None:
    replays = Replays(Clock(), max_bytes=1000)
    replays.add("a", log_of(400))
    replays.add("b", log_of(400))
    replays.drop("a")
    replays.add("c", log_of(400))
    assert [name for name in "abc" if replays.get(name)] == ["b", "c"]
