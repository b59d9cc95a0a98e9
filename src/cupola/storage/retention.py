"""What agents keep with the platform does not stay for ever (container contract, sections 4.12 to 4.15)."""

from __future__ import annotations

from sqlalchemy import Connection

from cupola.domain.service_limits import RETENTION
from cupola.storage.responses import delete_old_responses
from cupola.storage.state import delete_expired_items
from cupola.storage.tasks import delete_old_tasks


def sweep(connection: Connection, now: float, limit: int) -> bool:
    """Remove at most `limit` rows of each kind whose time is over; says whether there may be more."""
    before = int(now) - RETENTION
    swept = (
        delete_old_responses(connection, before, limit),
        delete_old_tasks(connection, before, limit),
        delete_expired_items(connection, now, limit),
    )
    return limit in swept
