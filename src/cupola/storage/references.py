"""Ids by which callers mean a session without naming it. Every function runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from sqlalchemy import Connection, bindparam, delete, insert, select

from cupola.storage.schema import session_references, sessions


class ReferenceKind(StrEnum):
    """What an id is of. A conversation's id is the caller's own, those of the others are the platform's."""

    RESPONSE = "response"
    INVOCATION = "invocation"
    CONVERSATION = "conversation"


@dataclass(frozen=True)
class Reference:
    """`owner` is the id of whom the request counted as; `created_at` is in epoch seconds."""

    kind: ReferenceKind
    id: str
    owner: str
    agent_key: int
    session_key: int
    created_at: int


_INSERT = (
    insert(session_references)
    .from_select(
        ["kind", "id", "owner", "agent_key", "session_key", "created_at"],
        select(
            bindparam("kind"), bindparam("id"), bindparam("owner"), bindparam("agent_key"), sessions.c.key,
            bindparam("created_at"),
        ).where(sessions.c.key == bindparam("session_key")),
    )
    .prefix_with("OR IGNORE")
)  # fmt: skip


def add_references(connection: Connection, references: Sequence[Reference]) -> None:
    """Keep references. One that exists already stays as it is; one to a session that is gone is left out."""
    if references:
        connection.execute(_INSERT, [asdict(reference) for reference in references])


def referenced_session(
    connection: Connection, kind: ReferenceKind, reference_id: str, owner: str | None, agent_key: int | None = None
) -> int | None:
    """The key of the session that an id means to an owner, or to anyone; of one agent if one is given."""
    query = select(session_references.c.session_key).where(
        session_references.c.kind == kind, session_references.c.id == reference_id
    )
    if owner is not None:
        query = query.where(session_references.c.owner == owner)
    if agent_key is not None:
        query = query.where(session_references.c.agent_key == agent_key)
    return connection.execute(query.limit(1)).scalar()


def remove_references(connection: Connection, kinds: Sequence[ReferenceKind], created_before: int) -> None:
    """Forget old references; those to a session that is deleted go with it."""
    connection.execute(
        delete(session_references).where(
            session_references.c.kind.in_(kinds), session_references.c.created_at < created_before
        )
    )
