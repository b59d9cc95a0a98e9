"""Log lines on stderr: readable on a terminal, one JSON object per line inside a platform.

Bodies and query strings are never logged. The fields of the current call (`request_id`, `response_id`, ...)
are on every record written while it runs, also in the developer's own.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar

import msgspec

from cupola_agent import jsons
from cupola_agent.log_stream import standard_error

AccessRecord = tuple[float, int, str, str, int, float, str, str, Mapping[str, str]]
"""A request that ended: seconds of the epoch, level, method, path, status, seconds it took, what was unusual about its
end, the caller's own id for it, the fields of the call."""

_LEVELS = {logging.DEBUG: "DEBUG", logging.INFO: "INFO", logging.WARNING: "WARNING"}

_call_fields: ContextVar[Mapping[str, str]] = ContextVar("cupola_agent_log_fields")


def start_log_fields(**fields: str) -> None:
    """Begins the fields of a call; a task that answers the next one on the same connection starts afresh."""
    _call_fields.set(fields)


def add_log_fields(**fields: str) -> None:
    _call_fields.set({**_call_fields.get({}), **fields})


def log_fields() -> Mapping[str, str]:
    """The fields of the current call."""
    return _call_fields.get({})


def configure_logging(*, as_json: bool, level: int = logging.INFO) -> None:
    """Sends everything to stderr. A developer who has configured the root logger keeps what he made."""
    root = logging.getLogger()
    for handler in root.handlers:
        if not isinstance(handler, StandardErrorHandler):
            return
        root.removeHandler(handler)
    root.addHandler(StandardErrorHandler(JsonFormatter() if as_json else ReadableFormatter()))
    root.setLevel(level)


def access_message(record: AccessRecord) -> str:
    _, _, method, path, status, seconds, outcome, _, _ = record
    if not path.isprintable():
        path = ascii(path)[1:-1]
    return f"{method} {path} {status} {outcome}{outcome and ' '}in {seconds * 1000:.1f} ms"


def access_details(record: AccessRecord) -> dict[str, object]:
    _, _, method, path, status, seconds, _, client_request_id, fields = record
    details = {**fields, "method": method, "path": path, "status": status, "duration_ms": round(seconds * 1000, 2)}
    if client_request_id:
        details["client_request_id"] = client_request_id
    return details


def configure_early_lines(*, as_json: bool) -> None:
    """What is logged before logging is configured takes the same shape, and stands in nobody's way who configures it."""
    logging.lastResort = StandardErrorHandler(JsonFormatter() if as_json else ReadableFormatter(), logging.WARNING)


class StandardErrorHandler(logging.Handler):
    """The handler `configure_logging` installs. Access lines may wait a moment in it, but never behind a later record."""

    def __init__(self, formatter: "JsonFormatter | ReadableFormatter", level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.lines = formatter
        self._stream = standard_error()
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        from cupola_agent.access import flush_access

        try:
            flush_access()
            self._stream.write(self.format(record) + "\n")
        except Exception:
            self.handleError(record)

    def write(self, text: str) -> None:
        """Lines that are formatted already."""
        self._stream.write(text)

    def flush(self) -> None:
        from cupola_agent.access import flush_access

        flush_access()
        self._stream.flush()


class ReadableFormatter(logging.Formatter):
    """`12:00:00.123 INFO logger: message`, with the first characters of the request id where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s: %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line = super().formatMessage(record)
        request_id = getattr(record, "request_id", "") or log_fields().get("request_id", "")
        return f"{line} [{request_id[:8]}]" if request_id else line

    def access_lines(self, records: Sequence[AccessRecord], logger: str) -> str:
        """The same lines without log records, which would cost more than everything else about the request's log."""
        lines = []
        for record in records:
            request_id = record[-1].get("request_id", "")
            moment, level = record[0], _LEVELS[record[1]]
            end = f" [{request_id[:8]}]\n" if request_id else "\n"
            begin = f"{_local_second(int(moment))}.{int(moment % 1 * 1000):03d} {level} {logger}: "
            lines.append(begin + access_message(record) + end)
        return "".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object per record; `time` is UTC, `exception` the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": f"{_utc_second(int(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **log_fields(),
            **getattr(record, "access", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return jsons.encode(line).decode()

    def access_lines(self, records: Sequence[AccessRecord], logger: str) -> str:
        return _line_encoder.encode_lines(
            {
                "time": f"{_utc_second(int(record[0]))}.{int(record[0] % 1 * 1000):03d}Z",
                "level": _LEVELS[record[1]],
                "logger": logger,
                "message": access_message(record),
                **access_details(record),
            }
            for record in records
        ).decode()


_line_encoder = msgspec.json.Encoder()

_utc = (0, "")
_local = (0, "")


def _utc_second(second: int) -> str:
    global _utc
    if _utc[0] != second:
        _utc = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
    return _utc[1]


def _local_second(second: int) -> str:
    global _local
    if _local[0] != second:
        _local = (second, time.strftime("%H:%M:%S", time.localtime(second)))
    return _local[1]
