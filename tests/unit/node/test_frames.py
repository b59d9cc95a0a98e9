"""Frames arrive whole and in order, with their descriptors, whatever the sockets do."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cupola.node.frames import Connection, ConnectionEnded, Lane
from cupola.node.messages import MESSAGE_LIMIT


@pytest.fixture
async def ends() -> AsyncIterator[tuple[Connection, Connection]]:
    one, other = (Connection(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    one, other = (Lane(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def descriptors_of(path: Path) -> int:
    links = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(entry.readlink()))
        except FileNotFoundError:
            continue
    return links.count(str(path))


async def test_messages_arrive_in_order(ends: tuple[Connection, Connection]) -> None:
    sent = [b"", b"one", b"x" * 3_000_000, b"last"]
    for body in sent:
        ends[0].send(body)
    received = []
    async for body, descriptors in ends[1].frames():
        assert descriptors == []
        received.append(body)
        if len(received) == len(sent):
            break
    assert received == sent
    assert ends[0].unsent == 0


async def test_descriptors_come_with_their_message(ends: tuple[Connection, Connection], tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_text(path.name)
    opened = [os.open(path, os.O_RDONLY) for path in paths]
    ends[0].send(b"x" * 1_000_000)
    ends[0].send(b"two", opened[:2])
    ends[0].send(b"none")
    ends[0].send(b"one", opened[2:])
    for descriptor in opened:
        os.close(descriptor)
    received: list[tuple[bytes, list[bytes]]] = []
    async for body, descriptors in ends[1].frames():
        received.append((body[:4], [os.read(descriptor, 10) for descriptor in descriptors]))
        for descriptor in descriptors:
            assert not os.get_inheritable(descriptor)
            os.close(descriptor)
        if body == b"one":
            break
    assert received == [(b"xxxx", []), (b"two", [b"a", b"b"]), (b"none", []), (b"one", [b"c"])]
    assert sum(map(descriptors_of, paths)) == 0


async def test_descriptors_that_nobody_takes_are_closed(ends: tuple[Connection, Connection], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    opened = os.open(path, os.O_RDONLY)
    for _ in range(3):
        # More than the sockets hold: some are still here and some are on their way when the other side goes.
        ends[0].send(b"x" * 1_000_000, [opened])
    os.close(opened)
    assert descriptors_of(path) > 0
    ends[1].close()
    ends[0].close()
    assert descriptors_of(path) == 0


async def test_who_waits_is_told_that_the_other_side_has_gone(ends: tuple[Connection, Connection]) -> None:
    async def wait() -> list[bytes]:
        return [body async for body, _ in ends[1].frames()]

    waiting = asyncio.create_task(wait())
    ends[0].send(b"last words")
    ends[0].close()
    assert await waiting == [b"last words"]
    ends[1].send(b"to nobody")


async def test_who_waits_is_told_that_its_own_side_was_closed(ends: tuple[Connection, Connection]) -> None:
    async def wait() -> list[bytes]:
        return [body async for body, _ in ends[1].frames()]

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    ends[1].close()
    assert await waiting == []


@pytest.mark.parametrize("head", [b"\xff\xff\xff\xff\x00", b"\x00\x00\x00\x01\xff", b"\x00\x00\x00\x01\x01x"])
async def test_what_is_no_frame_ends_the_connection(head: bytes) -> None:
    raw, end = socket.socketpair()
    connection = Connection(end)
    raw.send(head)
    assert [body async for body, _ in connection.frames()] == []
    connection.close()
    raw.close()


async def test_a_message_that_is_too_large_is_not_sent(ends: tuple[Connection, Connection]) -> None:
    with pytest.raises(ValueError, match="too large"):
        ends[0].send(bytes(MESSAGE_LIMIT + 1))


def test_a_lane_answers_a_thread(lanes: tuple[Lane, Lane], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")

    def serve() -> None:
        body, _ = lanes[1].receive()
        with path.open() as file:
            lanes[1].send(body * 500_000, [file.fileno()])

    thread = threading.Thread(target=serve)
    thread.start()
    lanes[0].send(b"ask")
    body, (descriptor,) = lanes[0].receive()
    thread.join()
    assert body == b"ask" * 500_000
    with os.fdopen(descriptor) as file:
        assert file.read() == "content"


def test_a_thread_that_waits_is_told_that_the_lane_was_closed(lanes: tuple[Lane, Lane]) -> None:
    ended: list[Exception] = []

    def wait() -> None:
        try:
            lanes[1].receive()
        except ConnectionEnded as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    lanes[0].close()
    thread.join(10)
    assert len(ended) == 1
    with pytest.raises(ConnectionEnded):
        lanes[1].send(b"to nobody")
