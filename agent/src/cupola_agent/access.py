"""One log line per request, at its end, by the logger `cupola_agent.access`.

With the library's own handler in place they are collected and written together a few milliseconds later, because a
log record costs a good part of what a whole request does. Any other configuration of logging gets ordinary records.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from time import time

from cupola_agent.logs import AccessRecord, StandardErrorHandler, access_details, access_message, log_fields

FLUSH_SECONDS = 0.01
MAX_WAITING = 512

logger = logging.getLogger("cupola_agent.access")
_root = logging.getLogger()
_parent = logging.getLogger("cupola_agent")
_waiting: list[AccessRecord] = []


def record_access(
    method: str, path: str, status: int, seconds: float, headers: Mapping[str, str], outcome: str = ""
) -> None:
    """Logs a request that ended, with the fields of the current call; `outcome` says what was unusual about its end.

    `status` is 0 when nothing was answered.
    """
    if status >= 400:
        level = logging.WARNING
    elif path == "/readiness":
        level = logging.DEBUG  # platforms ask several times a second
    else:
        level = logging.INFO
    if not logger.isEnabledFor(level):
        return
    client_request_id = headers.get("x-ms-client-request-id", "")
    _waiting.append((time(), level, method, path, status, seconds, outcome, client_request_id, log_fields()))
    waiting = len(_waiting)
    if waiting == 1 and _own_handler() is not None:
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, flush_access)
    elif waiting == 1 or waiting >= MAX_WAITING:
        flush_access()


def flush_access() -> None:
    """Writes the lines that wait."""
    global _waiting
    if not _waiting:
        return
    waiting, _waiting = _waiting, []
    handler = _own_handler()
    if handler is None:
        _log(waiting)
    else:
        handler.write(handler.lines.access_lines(waiting, logger.name))


def _log(records: Sequence[AccessRecord]) -> None:
    for record in records:
        fields = record[-1]
        extra = {"access": access_details(record), "request_id": fields.get("request_id", "")}
        logger.log(record[1], "%s", access_message(record), extra=extra)


def _own_handler() -> StandardErrorHandler | None:
    """The library's handler, when it is what the access lines would reach and all that they would reach."""
    if logger.handlers or logger.filters or not logger.propagate or _parent.handlers or not _parent.propagate:
        return None
    handlers = _root.handlers
    if len(handlers) == 1 and type(handlers[0]) is StandardErrorHandler and not handlers[0].filters:
        return handlers[0]
    return None
