"""What session a response, an invocation or a conversation belongs to, so that callers need not say it.

Ids of finished requests are written behind them, in batches: a crash forgets those of the last moment, whose answers are with
their callers anyway. What a caller comes back for, a response in the background or a conversation, is on disk before it
gets its answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from sqlalchemy import Connection

from cupola.domain.principal import Principal
from cupola.domain.session import LIFETIME, Session
from cupola.storage import references as storage
from cupola.storage.database import Database
from cupola.storage.references import Reference, ReferenceKind

logger = logging.getLogger(__name__)

WRITE_INTERVAL = 0.25
"""Seconds that a reference may be in memory alone."""
UNWRITTEN_LIMIT = 10_000
"""References in memory alone while the database fails; beyond that the oldest are given up."""
EXPIRY_INTERVAL = 600.0
_EXPIRING = (ReferenceKind.RESPONSE, ReferenceKind.INVOCATION)


class References:
    """The references of all projects."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._unwritten: dict[tuple[ReferenceKind, str], Reference] = {}

    async def run(self, stopping: asyncio.Event) -> None:
        """Write and forget until `stopping` is set, then write what is left."""
        expired_at = float("-inf")
        while not stopping.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), WRITE_INTERVAL)
            try:
                await self._write()
                if self._clock() - expired_at >= EXPIRY_INTERVAL:
                    expired_at = self._clock()
                    await self.remove_expired()
            except Exception:
                logger.exception("references to sessions could not be written down; it is tried again")

    def remember(self, kind: ReferenceKind, reference_id: str, caller: Principal, session: Session) -> None:
        """Keep a reference whose id is the platform's; it is on disk a moment later."""
        while len(self._unwritten) >= UNWRITTEN_LIMIT:
            del self._unwritten[next(iter(self._unwritten))]
        self._unwritten[kind, reference_id] = self._reference(kind, reference_id, caller, session)

    async def record(self, kind: ReferenceKind, reference_id: str, caller: Principal, session: Session) -> None:
        """Keep a reference; it is on disk when this returns. One that exists already stays as it is."""
        reference = self._reference(kind, reference_id, caller, session)
        await self._database.write(lambda connection: storage.add_references(connection, (reference,)))

    async def bind(self, conversation: str, caller: Principal, session: Session) -> int:
        """Bind a conversation to a session unless it is bound; the key of the session it is bound to from now on."""
        kind = ReferenceKind.CONVERSATION
        reference = self._reference(kind, conversation, caller, session)

        def write(connection: Connection) -> int | None:
            storage.add_references(connection, (reference,))
            return storage.referenced_session(connection, kind, conversation, caller.id, session.agent_key)

        return await self._database.write(write) or session.key

    async def find(
        self, kind: ReferenceKind, reference_id: str, caller: Principal, agent_key: int | None = None
    ) -> int | None:
        """The key of the session that an id means to a caller. To administrators also others' ids mean something, but not
        those of conversations, which are not unique."""
        everyone = caller.administrator and kind is not ReferenceKind.CONVERSATION
        unwritten = self._unwritten.get((kind, reference_id))
        if unwritten is not None:
            theirs = everyone or unwritten.owner == caller.id
            return unwritten.session_key if theirs and agent_key in (None, unwritten.agent_key) else None
        owner = None if everyone else caller.id
        return await self._database.read(
            lambda connection: storage.referenced_session(connection, kind, reference_id, owner, agent_key)
        )

    async def remove_expired(self) -> None:
        """Forget what is older than a session may be unused. A conversation lives as long as its session."""
        before = int(self._clock()) - LIFETIME
        await self._database.write(lambda connection: storage.remove_references(connection, _EXPIRING, before))

    def _reference(self, kind: ReferenceKind, reference_id: str, caller: Principal, session: Session) -> Reference:
        return Reference(kind, reference_id, caller.id, session.agent_key, session.key, int(self._clock()))

    async def _write(self) -> None:
        batch = tuple(self._unwritten.values())
        if not batch:
            return
        await self._database.write(lambda connection: storage.add_references(connection, batch))
        for reference in batch:
            if self._unwritten.get((reference.kind, reference.id)) is reference:
                del self._unwritten[reference.kind, reference.id]
