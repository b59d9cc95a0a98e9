"""Ids, environment, log lines."""

import io
import json
import logging
import sys
import uuid

import pytest
from cupola_agent import environment, ids
from cupola_agent.logs import JsonFormatter


def test_the_shape_of_an_id() -> None:
    partition = ids.new_partition()
    made = ids.new_id("caresp", partition)
    assert ids.is_response_id(made)
    assert ids.partition_of(made) == partition
    assert len(partition) == 18
    assert partition.endswith("00")
    assert made != ids.new_id("caresp", partition)


@pytest.mark.parametrize(
    ("identifier", "partition"),
    [
        ("caresp_" + "x" * 32 + "0123456789abcdef", "0123456789abcdef00"),
        ("conv_" + "0123456789abcdef00" + "y" * 32, "0123456789abcdef00"),
        ("conv_short", None),
        ("x" * 50, None),
        ("", None),
    ],
)
def test_the_partition_of_an_id(identifier: str, partition: str | None) -> None:
    assert ids.partition_of(identifier) == partition


def test_new_uuid_is_one() -> None:
    assert uuid.UUID(ids.new_uuid()).version == 4


@pytest.mark.parametrize("value", ["0", "65536", "-1", "http", "80.5"])
def test_a_port_out_of_range(value: str) -> None:
    with pytest.raises(ValueError, match="PORT must be an integer from 1 to 65535"):
        environment.read_port({"PORT": value})


def test_settings_have_defaults() -> None:
    assert environment.read_port({}) == 8088
    assert environment.read_grace_seconds({}) == 30
    assert environment.read_grace_seconds({"AGENTSERVER_GRACEFUL_SHUTDOWN_TIMEOUT_SECONDS": "-5"}) == 0
    assert environment.Environment.read({}) == environment.Environment()


def test_a_json_log_line_is_one_line() -> None:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(JsonFormatter())
    try:
        raise LookupError("lost\nand found")
    except LookupError:
        record = logging.makeLogRecord(
            {"msg": "a %s", "args": ("b",), "levelname": "ERROR", "exc_info": sys.exc_info()}
        )
    handler.emit(record)
    [line] = output.getvalue().splitlines()
    fields = json.loads(line)
    assert (fields["message"], fields["level"]) == ("a b", "ERROR")
    assert "LookupError: lost\nand found" in fields["exception"]
    assert fields["time"].endswith("Z")
