"""Responses, their items and conversations in the database. Every function runs inside the caller's transaction.

A response is seen by those who see its owner; it is changed and deleted by its own agent alone. What a caller may not see
does not exist for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any, Literal

import msgspec
from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from cupola.domain.errors import CupolaError, not_found
from cupola.domain.principal import ServiceCaller
from cupola.domain.stored_response import NewResponse, StoredItem, StoredResponse
from cupola.storage.agents import check_agent_of
from cupola.storage.schema import conversation_entries, items, responses

_BATCH = 500
"""Ids that one query names."""


def create_response(connection: Connection, caller: ServiceCaller, new: NewResponse, request_id: str, now: int) -> None:
    """A new response with its input. Raises CupolaError (409) when the project has one of that id, whoever made it.

    A request that comes again, because its answer was lost, has the same `request_id`, unless that is empty; it is content
    with what it finds.
    """
    response, sandbox = new.response, caller.sandbox
    check_agent_of(connection, sandbox)
    taken = select(responses.c.request_id, responses.c.session_guid, responses.c.owner).where(
        responses.c.project == sandbox.project, responses.c.id == response.id
    )
    present = connection.execute(taken).first()
    if present is not None:
        if request_id and tuple(present) == (request_id, sandbox.session_guid, caller.owner):
            return
        raise CupolaError("already_exists", f"A response with the id {response.id[:128]} already exists.", status=409)
    key = connection.execute(
        insert(responses)
        .values(
            project=sandbox.project,
            id=response.id,
            agent_key=sandbox.agent_key,
            session_guid=sandbox.session_guid,
            owner=caller.owner,
            history=msgspec.json.encode(new.history),
            request_id=request_id,
            created_at=now,
            **_changing(response, now),
        )
        .returning(responses.c.key)
    ).scalar_one()
    _add_items(connection, caller.owner, new.input_items, response_key=key, is_output=False)
    _add_items(connection, caller.owner, response.output, response_key=key, is_output=True)
    _enter_conversation(connection, key, caller.owner, response)


def update_response(connection: Connection, caller: ServiceCaller, response: StoredResponse, now: int) -> None:
    """Put this in the place of what is there. Raises CupolaError (404)."""
    row = _own(connection, caller, response.id)
    connection.execute(update(responses).where(responses.c.key == row.key).values(**_changing(response, now)))
    _replace_output(connection, row, response.output)
    _enter_conversation(connection, row.key, row.owner, response)


def get_response(connection: Connection, caller: ServiceCaller, response_id: str) -> tuple[bytes, list[bytes]]:
    """The envelope of a response, and its output. Raises CupolaError (404)."""
    row = _visible(connection, caller, response_id)
    return row.envelope, [item.body for item in _items(connection, row.key) if item.is_output]


def delete_response(connection: Connection, caller: ServiceCaller, response_id: str) -> None:
    """Remove a response with its items. Raises CupolaError (404)."""
    row = _own(connection, caller, response_id)
    connection.execute(delete(responses).where(responses.c.key == row.key))


def input_items(
    connection: Connection,
    caller: ServiceCaller,
    response_id: str,
    *,
    limit: int,
    order: Literal["asc", "desc"],
    after: str | None,
    before: str | None,
) -> list[bytes]:
    """A page of what a response was made from: its history, then its input. Cursors are ids; an unknown one is ignored.

    Raises CupolaError (404).
    """
    row = _visible(connection, caller, response_id)
    own = {item.id: item.body for item in _items(connection, row.key) if item.id and not item.is_output}
    ids = _unique((*msgspec.json.decode(row.history), *own))
    if order == "desc":
        ids.reverse()
    if after in ids:
        ids = ids[ids.index(after) + 1 :]
    if before in ids:
        ids = ids[: ids.index(before)]
    found: list[bytes] = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        others = read_items(connection, caller, [item_id for item_id in batch if item_id not in own])
        bodies = {**others, **own}
        found += [bodies[item_id] for item_id in batch if item_id in bodies]
        if len(found) >= limit:
            break
    return found[:limit]


def read_items(connection: Connection, caller: ServiceCaller, ids: Sequence[str]) -> dict[str, bytes]:
    """The items that the caller may see, by their ids. Of several with one id its own come first, then the newest."""
    found: dict[str, bytes] = {}
    for owner in reversed(caller.visible):
        for start in range(0, len(ids), _BATCH):
            query = select(items.c.id, items.c.body).where(
                items.c.owner == owner, items.c.id.in_(ids[start : start + _BATCH])
            )
            for row in connection.execute(query.order_by(items.c.key)):
                found[row.id] = row.body
    found.pop("", None)
    return found


def history_of_response(connection: Connection, caller: ServiceCaller, response_id: str) -> list[str]:
    """The ids of all that led to a response, and of its own input and output, oldest first. Raises CupolaError (404)."""
    row = _visible(connection, caller, response_id)
    return _unique((*msgspec.json.decode(row.history), *_item_ids(connection, items.c.response_key == row.key)))


def history_of_conversation(connection: Connection, caller: ServiceCaller, conversation_id: str) -> list[str]:
    """The ids of the items of a conversation in the order in which they were added."""
    entries = (
        select(conversation_entries)
        .where(
            conversation_entries.c.conversation_id == conversation_id,
            conversation_entries.c.owner.in_(caller.visible),
        )
        .order_by(conversation_entries.c.key)
    )
    ids: list[str] = []
    for entry in connection.execute(entries):
        response_key = entry.response_key
        whose = items.c.entry_key == entry.key if response_key is None else items.c.response_key == response_key
        ids += _item_ids(connection, whose)
    return _unique(ids)


def append_items(connection: Connection, owner: str, conversation_id: str, added: Sequence[StoredItem]) -> None:
    """Add items that belong to no response to a conversation."""
    values = insert(conversation_entries).values(owner=owner, conversation_id=conversation_id)
    key = connection.execute(values.returning(conversation_entries.c.key)).scalar_one()
    _add_items(connection, owner, added, entry_key=key, is_output=False)


def delete_old_responses(connection: Connection, before: int, limit: int) -> int:
    """Remove some of the responses that were last written before then; says how many."""
    old = select(responses.c.key).where(responses.c.updated_at < before).limit(limit)
    return connection.execute(delete(responses).where(responses.c.key.in_(old.scalar_subquery()))).rowcount


def _changing(response: StoredResponse, now: int) -> dict[str, Any]:
    return {
        "conversation_id": response.conversation_id,
        "status": response.status,
        "envelope": response.envelope,
        "updated_at": now,
    }


def _visible(connection: Connection, caller: ServiceCaller, response_id: str) -> Row[Any]:
    row = connection.execute(
        select(responses).where(
            responses.c.project == caller.sandbox.project,
            responses.c.id == response_id,
            responses.c.owner.in_(caller.visible),
        )
    ).first()
    if row is None:
        raise not_found(f"The response {response_id[:128]}")
    return row


def _own(connection: Connection, caller: ServiceCaller, response_id: str) -> Row[Any]:
    row = _visible(connection, caller, response_id)
    if row.agent_key != caller.sandbox.agent_key:
        raise not_found(f"The response {response_id[:128]}")
    return row


def _items(connection: Connection, response_key: int) -> list[Row[Any]]:
    """The input of a response, then its output."""
    query = select(items).where(items.c.response_key == response_key).order_by(items.c.is_output, items.c.key)
    return list(connection.execute(query))


def _replace_output(connection: Connection, row: Row[Any], output: Sequence[StoredItem]) -> None:
    """What has not changed since the last snapshot is not written again."""
    present = [item for item in _items(connection, row.key) if item.is_output]
    pairs = zip(present, output, strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0].body == pair[1].body, pairs))
    if present[same:]:
        stale = (items.c.response_key == row.key, items.c.is_output, items.c.key >= present[same].key)
        connection.execute(delete(items).where(*stale))
    _add_items(connection, row.owner, output[same:], response_key=row.key, is_output=True)


def _add_items(
    connection: Connection,
    owner: str,
    added: Sequence[StoredItem],
    *,
    response_key: int | None = None,
    entry_key: int | None = None,
    is_output: bool,
) -> None:
    if added:
        place = {"response_key": response_key, "entry_key": entry_key, "is_output": is_output, "owner": owner}
        connection.execute(insert(items), [{**place, "id": item.id, "body": item.body} for item in added])


def _enter_conversation(connection: Connection, key: int, owner: str, response: StoredResponse) -> None:
    """A finished response joins its conversation; one that is there already keeps its place."""
    if response.conversation_id is None or not response.finished:
        return
    entry = select(conversation_entries.c.conversation_id).where(conversation_entries.c.response_key == key)
    present = connection.execute(entry).scalar()
    if present == response.conversation_id:
        return
    connection.execute(delete(conversation_entries).where(conversation_entries.c.response_key == key))
    connection.execute(
        insert(conversation_entries).values(owner=owner, conversation_id=response.conversation_id, response_key=key)
    )


def _item_ids(connection: Connection, whose: ColumnElement[bool]) -> list[str]:
    query = select(items.c.id).where(whose, items.c.id != "").order_by(items.c.is_output, items.c.key)
    return list(connection.execute(query).scalars())


def _unique(ids: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(ids))
