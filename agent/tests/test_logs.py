"""Log lines: their shape, the fields of the call, access lines, and a reader that does not keep up."""

import asyncio
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cupola_agent.access import record_access
from cupola_agent.log_stream import LogStream
from cupola_agent.logs import add_log_fields, configure_logging, start_log_fields


class Process:
    """Logging as in a process of its own: stderr in memory, no handlers but those that a test adds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.written = io.StringIO()
        self.root = logging.getLogger()

    def configure(self, *, as_json: bool, own: logging.Handler | None = None) -> None:
        # pytest puts in its own after the fixtures are made.
        self._monkeypatch.setattr(sys, "stderr", self.written)
        self.root.handlers = [] if own is None else [own]
        self.root.setLevel(logging.INFO)
        configure_logging(as_json=as_json)

    @property
    def text(self) -> str:
        for handler in self.root.handlers:
            handler.flush()
        return self.written.getvalue()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    made = Process(monkeypatch)
    before, level = made.root.handlers[:], made.root.level
    yield made
    made.root.handlers = before
    made.root.setLevel(level)


def access(path: str = "/responses", status: int = 200, outcome: str = "", client_request_id: str = "") -> None:
    headers = {"x-ms-client-request-id": client_request_id} if client_request_id else {}
    record_access("POST", path, status, 0.00123, headers, outcome)


async def test_readable_lines_come_in_order_with_the_start_of_the_request_id(process: Process) -> None:
    process.configure(as_json=False)
    start_log_fields(request_id="0123456789abcdef")
    access()
    access("/readiness")
    access("/other", 404, "client left")
    logging.getLogger("own").info("later")
    lines = [line.partition(" ")[2] for line in process.text.splitlines()]
    assert lines == [
        "INFO cupola_agent.access: POST /responses 200 in 1.2 ms [01234567]",
        "WARNING cupola_agent.access: POST /other 404 client left in 1.2 ms [01234567]",
        "INFO own: later [01234567]",
    ]


async def test_json_lines_have_the_fields_of_the_call(process: Process) -> None:
    process.configure(as_json=True)
    start_log_fields(request_id="r")
    add_log_fields(response_id="caresp_1")
    access(client_request_id="theirs")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("own").exception("failed %s", "here")
    first, second = (json.loads(line) for line in process.text.splitlines())
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "cupola_agent.access",
        "message": "POST /responses 200 in 1.2 ms",
        "request_id": "r",
        "response_id": "caresp_1",
        "method": "POST",
        "path": "/responses",
        "status": 200,
        "duration_ms": 1.23,
        "client_request_id": "theirs",
    }
    assert (second["message"], second["response_id"]) == ("failed here", "caresp_1")
    assert second["exception"].endswith("ValueError: why")


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_path_cannot_forge_a_line(process: Process, as_json: bool) -> None:
    process.configure(as_json=as_json)
    access("/a\r\nINFO forged\x1b[0m\u2028")
    [line] = process.text.split("\n")[:-1]
    assert "\r" not in line
    assert "\x1b" not in line
    assert "\\r\\nINFO forged" in line


async def test_access_lines_come_by_themselves_after_a_moment(process: Process) -> None:
    process.configure(as_json=False)
    access()
    async with asyncio.timeout(10):
        while "POST /responses 200" not in process.written.getvalue():
            await asyncio.sleep(0.001)


async def test_a_developer_who_configures_logging_gets_records(process: Process) -> None:
    records: list[logging.LogRecord] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    own = Collecting()
    process.configure(as_json=True, own=own)
    start_log_fields(request_id="r")
    access()
    assert [record.getMessage() for record in records] == ["POST /responses 200 in 1.2 ms"]
    details: Any = records[0]
    assert (details.access["status"], details.request_id) == (200, "r")
    assert process.root.handlers == [own]
    assert process.text == ""


@pytest.mark.parametrize("level", [logging.WARNING, logging.CRITICAL])
async def test_access_lines_can_be_switched_off(process: Process, level: int) -> None:
    process.configure(as_json=False)
    logger = logging.getLogger("cupola_agent.access")
    logger.setLevel(level)
    try:
        access()
        assert process.text == ""
    finally:
        logger.setLevel(logging.NOTSET)


def test_a_reader_that_does_not_keep_up_holds_nobody_up_and_loses_only_what_is_too_much() -> None:
    reading, writing = os.pipe()
    stream = LogStream(writing, max_waiting=300_000)
    count = 0
    for count in range(5000):
        stream.write(f"{count:04d} {'x' * 95}\n")
    text = b""
    stream.write("")
    while b"were lost" not in text:
        text += os.read(reading, 65536)
    lines = text.decode().splitlines()
    kept = [line for line in lines if "lost" not in line]
    assert [int(line[:4]) for line in kept] == list(range(len(kept)))
    lost = sum(int(line.split()[0]) for line in lines if "lost" in line)
    assert len(kept) + lost == count + 1
    stream.write("again\n")
    stream.flush()
    os.close(writing)
    assert b"again\n" in os.read(reading, 65536)
    os.close(reading)


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    LogStream(writing).write("nobody\n")
    os.close(writing)
