import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping

import pytest
from cupola_agent.exchange import ClientDisconnectedError, HeaderPairs
from cupola_agent.responses.log import EventLog, event_data, send_events


class Wire:
    """The answering half of an exchange: keeps each write apart."""

    method = "GET"
    path = "/"
    query_string = b""
    headers: Mapping[str, str] = {}
    answered = True

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.finished = False
        self.disconnected = False
        self.slow = asyncio.Event()
        self.slow.set()

    async def body(self) -> bytes:
        return b""

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        yield b""

    def respond(self, status: int, headers: HeaderPairs, body: bytes) -> None:
        raise AssertionError("a stream was answered whole")

    def start(self, status: int, headers: HeaderPairs) -> None:
        raise AssertionError("begun twice")

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    async def drained(self) -> None:
        if self.disconnected:
            raise ClientDisconnectedError
        await self.slow.wait()

    def finish(self) -> None:
        self.finished = True

    def abort(self) -> None:
        raise AssertionError("cut")

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        pass


def filled(count: int, first: int = 0) -> EventLog:
    log = EventLog(first)
    for number in range(first, first + count):
        log.append("response.tick", b'{"n":%d}' % number)
    return log


def numbers(wire: Wire) -> list[bytes]:
    frames = b"".join(wire.writes).split(b"\n\n")[:-1]
    return [frame.partition(b"data: ")[2] for frame in frames if not frame.startswith(b":")]


async def test_a_burst_leaves_in_one_write_and_a_lone_event_at_once() -> None:
    log, wire = filled(3), Wire()
    sending = asyncio.create_task(send_events(wire, log, 0, keep_alive=None, only_reader=False))
    await asyncio.sleep(0)
    assert len(wire.writes) == 1
    await asyncio.sleep(0)
    log.append("response.tick", b'{"n":3}')
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(wire.writes) == 2
    log.close()
    await sending
    assert numbers(wire) == [b'{"n":%d}' % number for number in range(4)]
    assert wire.finished


@pytest.mark.parametrize("start", range(6))
async def test_a_reader_gets_the_events_from_any_number_on(start: int) -> None:
    log, wire = filled(5), Wire()
    log.close()
    await send_events(wire, log, start, keep_alive=None, only_reader=False)
    assert numbers(wire) == [b'{"n":%d}' % number for number in range(start, 5)]
    assert wire.finished


async def test_events_that_come_while_a_reader_is_slow_are_all_delivered_in_order() -> None:
    log, wire = filled(1), Wire()
    wire.slow.clear()
    sending = asyncio.create_task(send_events(wire, log, 0, keep_alive=None, only_reader=True))
    for number in range(1, 50):
        await asyncio.sleep(0)
        log.append("response.tick", b'{"n":%d}' % number)
    wire.slow.set()
    log.close()
    await sending
    assert numbers(wire) == [b'{"n":%d}' % number for number in range(50)]


async def test_the_only_reader_of_a_log_leaves_nothing_in_memory() -> None:
    log = filled(100)
    log.close()
    await send_events(Wire(), log, 0, keep_alive=None, only_reader=True)
    assert log.size == 0
    assert log.read(0) == []
    assert log.end == 100


async def test_silence_is_broken_by_comments_and_by_nothing_else() -> None:
    log, wire = EventLog(), Wire()
    sending = asyncio.create_task(send_events(wire, log, 0, keep_alive=0.001, only_reader=False))
    async with asyncio.timeout(10):
        while len(wire.writes) < 3:
            await asyncio.sleep(0.001)
    log.close()
    await sending
    assert set(wire.writes) == {b": keep-alive\n\n"}


async def test_a_client_that_left_ends_the_sending() -> None:
    log, wire = filled(1), Wire()
    wire.disconnected = True
    with pytest.raises(ClientDisconnectedError):
        await send_events(wire, log, 0, keep_alive=None, only_reader=True)


async def test_a_writer_waits_while_the_only_reader_is_far_behind() -> None:
    log = EventLog()
    while not log.crowded:
        log.append("response.tick", b"x" * 100_000)
    waiting = asyncio.create_task(log.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    log.forget(log.end)
    async with asyncio.timeout(10):
        await waiting


async def test_two_readers_do_not_disturb_each_other() -> None:
    log, first, second = EventLog(), Wire(), Wire()
    async with asyncio.TaskGroup() as group:
        group.create_task(send_events(first, log, 0, keep_alive=None, only_reader=False))
        group.create_task(send_events(second, log, 0, keep_alive=None, only_reader=False))
        for number in range(20):
            log.append("response.tick", b'{"n":%d}' % number)
            await asyncio.sleep(0)
        log.close()
    assert numbers(first) == numbers(second) == [b'{"n":%d}' % number for number in range(20)]


def test_an_event_reads_back_as_its_json() -> None:
    log = EventLog()
    log.append("response.tick", b'{"text":"event: data: "}')
    assert event_data(log.read(0)[0]) == b'{"text":"event: data: "}'
