"""State stores and their items in the database, each within its agent. Every function runs inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, or_, select, update

from cupola.domain.errors import CupolaError, etag_mismatch, not_found
from cupola.domain.principal import SandboxPrincipal
from cupola.domain.state_store import DEFAULT_TTL, FOR_EVER, Content, StateItem, StateStore
from cupola.storage.agents import check_agent_of
from cupola.storage.paging import Page
from cupola.storage.schema import state_items, state_stores

_KEYS = [column for column in state_items.c if column.name != "value"]


def create_store(
    connection: Connection,
    sandbox: SandboxPrincipal,
    name: str,
    settings: Mapping[str, Any],
    *,
    user_isolation: bool,
    now: int,
) -> StateStore:
    """A new store of the sandbox's agent. Raises CupolaError (409)."""
    check_agent_of(connection, sandbox)
    if _store_row(connection, sandbox.agent_key, name) is not None:
        raise CupolaError("already_exists", f"A state store {name!r} already exists.", status=409)
    usual: dict[str, Any] = {"description": None, "tags": {}, "item_ttl_seconds": DEFAULT_TTL}
    values = {**usual, **settings, "user_isolation": user_isolation, "created_at": now, "updated_at": now}
    new = insert(state_stores).values(agent_key=sandbox.agent_key, name=name, **values).returning(*state_stores.c)
    return _store(connection.execute(new).one())


def get_store(connection: Connection, agent_key: int, name: str) -> StateStore:
    """Raises CupolaError (404)."""
    row = _store_row(connection, agent_key, name)
    if row is None:
        raise not_found(f"The state store {name!r}")
    return _store(row)


def update_store(
    connection: Connection, agent_key: int, name: str, settings: Mapping[str, Any], now: int
) -> StateStore:
    """Change some settings. Raises CupolaError (404)."""
    store = get_store(connection, agent_key, name)
    change = update(state_stores).where(state_stores.c.key == store.key).values(**settings, updated_at=now)
    return _store(connection.execute(change.returning(*state_stores.c)).one())


def delete_store(connection: Connection, agent_key: int, name: str) -> None:
    """Remove a store with its items, if it is there."""
    connection.execute(delete(state_stores).where(state_stores.c.agent_key == agent_key, state_stores.c.name == name))


def create_item(
    connection: Connection, store: StateStore, owner: str, name: str, content: Content, etag: str, now: float
) -> StateItem:
    """A new item. Raises CupolaError (409)."""
    if find_item(connection, store, owner, name, now) is not None:
        raise CupolaError("already_exists", f"A state item {name!r} already exists.", status=409, param="key")
    return _insert(connection, store, owner, name, content, etag, now)


def put_item(
    connection: Connection,
    store: StateStore,
    owner: str,
    name: str,
    content: Content,
    if_match: str | None,
    etag: str,
    now: float,
) -> StateItem:
    """A new item, or a new state of one. Raises CupolaError (412)."""
    present = find_item(connection, store, owner, name, now)
    _check_etag(present, name, if_match)
    if present is None:
        return _insert(connection, store, owner, name, content, etag, now)
    values = _written(store, content, etag, now)
    change = update(state_items).where(state_items.c.key == present.key).values(**values)
    return _item(connection.execute(change.returning(*_KEYS)).one())


def find_item(connection: Connection, store: StateStore, owner: str, name: str, now: float) -> StateItem | None:
    """The key of an item, or None."""
    row = connection.execute(select(*_KEYS).where(*_place(store, owner, name), _alive(now))).first()
    return None if row is None else _item(row)


def get_item(connection: Connection, store: StateStore, owner: str, name: str, now: float) -> StateItem:
    """An item with its value. Raises CupolaError (404)."""
    row = connection.execute(select(state_items).where(*_place(store, owner, name), _alive(now))).first()
    if row is None:
        raise not_found(f"The state item {name!r}")
    return _item(row, row.value)


def delete_item(
    connection: Connection, store: StateStore, owner: str, name: str, if_match: str | None, now: float
) -> None:
    """Remove an item; one that is not there is fine without `if_match`. Raises CupolaError (412)."""
    _check_etag(find_item(connection, store, owner, name, now), name, if_match)
    connection.execute(delete(state_items).where(*_place(store, owner, name)))


def list_keys(
    connection: Connection,
    store: StateStore,
    owner: str,
    tags: Mapping[str, str],
    now: float,
    *,
    limit: int,
    order: Literal["asc", "desc"],
    after: str | None,
    before: str | None,
) -> Page[StateItem]:
    """The keys of an owner in the order in which they were made. With a cursor that is unknown there is nothing."""
    key = state_items.c.key
    mine = (state_items.c.store_key == store.key, state_items.c.owner == owner)
    query = select(*_KEYS).where(*mine, _alive(now))
    query = query.where(*(state_items.c.tags[tag].as_string() == text for tag, text in tags.items()))
    for cursor, follows in ((after, order == "asc"), (before, order == "desc")):
        if cursor is None:
            continue
        known = connection.execute(select(key).where(key == _number(cursor), *mine)).scalar()
        if known is None:
            return Page((), False)
        query = query.where(key > known if follows else key < known)
    rows = list(connection.execute(query.order_by(key.asc() if order == "asc" else key.desc()).limit(limit + 1)))
    return Page(tuple(_item(row) for row in rows[:limit]), len(rows) > limit)


def delete_expired_items(connection: Connection, now: float, limit: int) -> int:
    """Remove some of the items whose time is over; says how many."""
    old = select(state_items.c.key).where(state_items.c.expires_at <= now).limit(limit)
    return connection.execute(delete(state_items).where(state_items.c.key.in_(old.scalar_subquery()))).rowcount


def _store_row(connection: Connection, agent_key: int, name: str) -> Row[Any] | None:
    query = select(state_stores).where(state_stores.c.agent_key == agent_key, state_stores.c.name == name)
    return connection.execute(query).first()


def _store(row: Row[Any]) -> StateStore:
    return StateStore(**{entry.name: getattr(row, entry.name) for entry in fields(StateStore)})


def _item(row: Row[Any], value: bytes | None = None) -> StateItem:
    return StateItem(row.key, row.name, row.etag, row.tags, row.created_at, row.updated_at, value)


def _insert(
    connection: Connection, store: StateStore, owner: str, name: str, content: Content, etag: str, now: float
) -> StateItem:
    # One whose time is over and that was not swept yet is no item: what takes its place is new.
    connection.execute(delete(state_items).where(*_place(store, owner, name)))
    place = {"store_key": store.key, "owner": owner, "name": name, "created_at": int(now)}
    new = insert(state_items).values(**place, **_written(store, content, etag, now)).returning(*_KEYS)
    return _item(connection.execute(new).one())


def _written(store: StateStore, content: Content, etag: str, now: float) -> dict[str, Any]:
    ttl = store.item_ttl_seconds
    return {
        "value": content.value,
        "tags": content.tags,
        "etag": etag,
        "updated_at": int(now),
        "expires_at": None if ttl == FOR_EVER else now + ttl,
    }


def _place(store: StateStore, owner: str, name: str) -> tuple[Any, ...]:
    return (state_items.c.store_key == store.key, state_items.c.owner == owner, state_items.c.name == name)


def _alive(now: float) -> Any:
    return or_(state_items.c.expires_at.is_(None), state_items.c.expires_at > now)


def _check_etag(present: StateItem | None, name: str, if_match: str | None) -> None:
    if if_match is None:
        return
    if present is None or if_match.strip('"') not in ("*", present.etag):
        raise etag_mismatch(f"The state item {name!r}", present.etag if present else None)


def _number(cursor: str) -> int:
    """The key that a cursor stands for; no item has the key 0."""
    digits = cursor.removeprefix("it_")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 18 else 0
