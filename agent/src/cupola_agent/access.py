"""One log line per request, at its end, by the logger `cupola_agent.access`.

With the library's own handler in place they are collected and written together a few milliseconds later, because a
log record costs a good part of what a whole request does. Any other configuration of logging gets ordinary records.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

from cupola_agent.logs import StandardErrorHandler, log_fields

FLUSH_SECONDS = 0.01
MAX_WAITING = 512

logger = logging.getLogger("cupola_agent.access")
_root = logging.getLogger()


class Access(NamedTuple):
    """One request that ended. `status` is 0 when it was not answered; `seconds` is how long it took."""

    created: float
    level: int
    method: str
    path: str
    status: int
    seconds: float
    outcome: str
    client_request_id: str
    fields: Mapping[str, str]

    @property
    def message(self) -> str:
        path = self.path if self.path.isprintable() else ascii(self.path)[1:-1]
        outcome = f" {self.outcome}" if self.outcome else ""
        return f"{self.method} {path} {self.status}{outcome} in {self.seconds * 1000:.1f} ms"

    def details(self) -> dict[str, object]:
        return {
            **self.fields,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "duration_ms": round(self.seconds * 1000, 2),
            **({"client_request_id": self.client_request_id} if self.client_request_id else {}),
        }


_waiting: list[Access] = []


def record_access(
    method: str, path: str, status: int, seconds: float, headers: Mapping[str, str], outcome: str = ""
) -> None:
    """Logs a request that ended, with the fields of the current call; `outcome` says what was unusual about its end."""
    if status >= 400:
        level = logging.WARNING
    elif path == "/readiness":
        level = logging.DEBUG  # platforms ask several times a second
    else:
        level = logging.INFO
    if not logger.isEnabledFor(level):
        return
    client_request_id = headers.get("x-ms-client-request-id", "")
    _waiting.append(Access(time.time(), level, method, path, status, seconds, outcome, client_request_id, log_fields()))
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
        for access in waiting:
            extra = {"access": access.details(), "request_id": access.fields.get("request_id", "")}
            logger.log(access.level, "%s", access.message, extra=extra)
        return
    line = handler.lines.access_line
    handler.write(
        "".join(
            line(access.created, logging.getLevelName(access.level), logger.name, access.message, access.details())
            for access in waiting
        )
    )


def _own_handler() -> StandardErrorHandler | None:
    """The library's handler, when it is what the access lines would reach and all that they would reach."""
    if logger.handlers or logger.filters or not logger.propagate or _parent.handlers or not _parent.propagate:
        return None
    handlers = _root.handlers
    if len(handlers) == 1 and type(handlers[0]) is StandardErrorHandler and not handlers[0].filters:
        return handlers[0]
    return None


_parent = logging.getLogger("cupola_agent")
