"""Log lines on stderr: readable on a terminal, one JSON object per line inside a platform.

Bodies and query strings are never logged. The fields of the current call (`request_id`, `response_id`, ...)
are on every record written while it runs, also in the developer's own.
"""

import logging
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar

from cupola_agent import jsons

_call_fields: ContextVar[Mapping[str, str]] = ContextVar("cupola_agent_log_fields")


def start_log_fields(**fields: str) -> None:
    """Begins the fields of a call; a task that answers the next one on the same connection starts afresh."""
    _call_fields.set(fields)


def add_log_fields(**fields: str) -> None:
    _call_fields.set({**_call_fields.get({}), **fields})


def configure_logging(*, as_json: bool, level: int = logging.INFO) -> None:
    """Sends everything to stderr, which Python never holds back longer than a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else ReadableFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Its start and stop lines say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class ReadableFormatter(logging.Formatter):
    """`12:00:00.123 INFO logger: message`, with the first characters of the request id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        request_id = _call_fields.get({}).get("request_id", "")
        return f"{line} [{request_id[:8]}]" if request_id else line


class JsonFormatter(logging.Formatter):
    """One JSON object per record; `time` is UTC, `exception` the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_call_fields.get({}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return jsons.encode(line).decode()
