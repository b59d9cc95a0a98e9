"""State in a SQLite file below the state root, by the same rules as the platform's."""

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cupola_agent.call import Caller
from cupola_agent.state import limits
from cupola_agent.state.base import NO_EXPIRY, Item, ItemKey, KeyPage, StoreInfo, StoreSettings
from cupola_agent.stores.base import AlreadyExistsError, Json, NotFoundError, PreconditionFailedError
from cupola_agent.stores.records import decode
from cupola_agent.stores.sqlite import Database, Schema

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "state.sqlite"

_SWEPT_AT_ONCE = 50

_STATEMENTS = (
    """CREATE TABLE stores (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        user_isolation INTEGER NOT NULL,
        ttl INTEGER NOT NULL,
        description TEXT,
        tags TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    )""",
    """CREATE TABLE items (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        store INTEGER NOT NULL,
        owner TEXT NOT NULL,
        key TEXT NOT NULL,
        value BLOB NOT NULL,
        tags TEXT NOT NULL,
        etag TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        expires_at REAL,
        UNIQUE (store, owner, key)
    )""",
    "CREATE INDEX items_in_order ON items (store, owner, number)",
    "CREATE INDEX items_by_expiry ON items (expires_at) WHERE expires_at IS NOT NULL",
)
_KEY_COLUMNS = "number, key, etag, created_at, updated_at, tags"


class LocalStateBackend:
    """A StateBackend in `state.sqlite` in the folder. Callers without a user id share the keys of one nameless user."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._database = Database(folder / FILE_NAME, Schema(1, _STATEMENTS, self._sweep))

    def open(self) -> None:
        """Begins to open the file in the background; the first call does it otherwise."""
        self._database.open()

    async def create_store(self, name: str, settings: StoreSettings, caller: Caller) -> StoreInfo:
        limits.check_name(name)
        limits.check_settings(settings)

        def job(connection: "sqlite3.Connection") -> StoreInfo:
            if connection.execute("SELECT 1 FROM stores WHERE name = ?", (name,)).fetchone():
                raise AlreadyExistsError(f"State store '{name}' already exists.", param="name")
            now = int(self._clock())
            connection.execute(
                "INSERT INTO stores (name, user_isolation, ttl, description, tags, created_at, updated_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    settings.user_isolation,
                    settings.item_ttl_seconds,
                    settings.description,
                    json.dumps(dict(settings.tags)),
                    now,
                    now,
                ),
            )
            return _store(connection, name)[1]

        return await self._database.write(job)

    async def get_store(self, name: str, caller: Caller) -> StoreInfo:
        limits.check_name(name)
        return await self._database.read(lambda connection: _store(connection, name)[1])

    async def update_store(self, name: str, changes: Json, caller: Caller) -> StoreInfo:
        limits.check_name(name)
        limits.check_changes(changes)

        def job(connection: "sqlite3.Connection") -> StoreInfo:
            number, info = _store(connection, name)
            connection.execute(
                "UPDATE stores SET description = ?, tags = ?, ttl = ?, updated_at = ? WHERE number = ?",
                (
                    changes.get("description", info.description),
                    json.dumps(changes.get("tags", info.tags) or {}),
                    changes.get("item_ttl_seconds", info.item_ttl_seconds),
                    int(self._clock()),
                    number,
                ),
            )
            return _store(connection, name)[1]

        return await self._database.write(job)

    async def delete_store(self, name: str, caller: Caller) -> None:
        limits.check_name(name)

        def job(connection: "sqlite3.Connection") -> None:
            connection.execute("DELETE FROM items WHERE store = (SELECT number FROM stores WHERE name = ?)", (name,))
            connection.execute("DELETE FROM stores WHERE name = ?", (name,))

        await self._database.write(job)

    async def create_item(
        self, name: str, key: str, value: Json, tags: Mapping[str, str], caller: Caller, user_id: str | None
    ) -> ItemKey:
        body = _checked(name, key, value, tags)

        def job(connection: "sqlite3.Connection") -> ItemKey:
            store, info = _store(connection, name)
            owner = _owner(info, caller, user_id)
            if self._key(connection, store, owner, key) is not None:
                raise AlreadyExistsError(f"State item '{key}' already exists.", param="key")
            return self._write(connection, store, info, owner, key, body, tags)

        return await self._database.write(job)

    async def put_item(
        self,
        name: str,
        key: str,
        value: Json,
        tags: Mapping[str, str],
        caller: Caller,
        user_id: str | None,
        if_match: str | None,
    ) -> ItemKey:
        body = _checked(name, key, value, tags)

        def job(connection: "sqlite3.Connection") -> ItemKey:
            store, info = _store(connection, name)
            owner = _owner(info, caller, user_id)
            _check_etag(self._key(connection, store, owner, key), if_match)
            return self._write(connection, store, info, owner, key, body, tags)

        return await self._database.write(job)

    async def get_item(self, name: str, key: str, caller: Caller, user_id: str | None) -> Item:
        limits.check_name(name)
        limits.check_name(key, "key")

        def job(connection: "sqlite3.Connection") -> tuple[ItemKey, bytes]:
            store, info = _store(connection, name)
            found = self._key(connection, store, _owner(info, caller, user_id), key)
            if found is None:
                raise NotFoundError(f"State item '{key}' not found.", param="key")
            (value,) = connection.execute("SELECT value FROM items WHERE number = ?", (_number(found),)).fetchone()
            return found, value

        found, value = await self._database.read(job)
        return Item(found, decode(value))

    async def delete_item(self, name: str, key: str, caller: Caller, user_id: str | None, if_match: str | None) -> None:
        limits.check_name(name)
        limits.check_name(key, "key")

        def job(connection: "sqlite3.Connection") -> None:
            store, info = _store(connection, name)
            found = self._key(connection, store, _owner(info, caller, user_id), key)
            _check_etag(found, if_match)
            if found is not None:
                connection.execute("DELETE FROM items WHERE number = ?", (_number(found),))

        await self._database.write(job)

    async def list_keys(
        self,
        name: str,
        caller: Caller,
        user_id: str | None,
        *,
        tags: Mapping[str, str],
        limit: int,
        after: str | None,
        newest_first: bool,
    ) -> KeyPage:
        limits.check_name(name)
        limits.check_tags(dict(tags))
        limits.check_page(limit)

        def job(connection: "sqlite3.Connection") -> KeyPage:
            store, info = _store(connection, name)
            conditions = ["store = ?", "owner = ?", "(expires_at IS NULL OR expires_at > ?)"]
            values: list[Any] = [store, _owner(info, caller, user_id), self._clock()]
            for tag, text in tags.items():
                conditions.append("json_extract(tags, ?) = ?")
                values += (f'$."{tag}"', text)
            if after is not None:
                conditions.append("number < ?" if newest_first else "number > ?")
                values.append(_cursor(connection, store, after))
            rows = connection.execute(
                f"SELECT {_KEY_COLUMNS} FROM items WHERE {' AND '.join(conditions)} "  # noqa: S608
                f"ORDER BY number {'DESC' if newest_first else 'ASC'} LIMIT ?",
                (*values, limit + 1),
            ).fetchall()
            return KeyPage(tuple(_item_key(row) for row in rows[:limit]), len(rows) > limit)

        return await self._database.read(job)

    async def close(self) -> None:
        await self._database.close()

    def _key(self, connection: "sqlite3.Connection", store: int, owner: str, key: str) -> ItemKey | None:
        row = connection.execute(
            f"SELECT {_KEY_COLUMNS} FROM items WHERE store = ? AND owner = ? AND key = ? "  # noqa: S608
            "AND (expires_at IS NULL OR expires_at > ?)",
            (store, owner, key, self._clock()),
        ).fetchone()
        return None if row is None else _item_key(row)

    def _write(
        self,
        connection: "sqlite3.Connection",
        store: int,
        info: StoreInfo,
        owner: str,
        key: str,
        body: bytes,
        tags: Mapping[str, str],
    ) -> ItemKey:
        now = self._clock()
        expires_at = None if info.item_ttl_seconds == NO_EXPIRY else now + info.item_ttl_seconds
        etag = os.urandom(8).hex()
        # An expired item that was not swept yet is no item: what takes its place is new.
        connection.execute(
            "DELETE FROM items WHERE store = ? AND owner = ? AND key = ? AND expires_at <= ?", (store, owner, key, now)
        )
        connection.execute(
            "INSERT INTO items (store, owner, key, value, tags, etag, created_at, updated_at, expires_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (store, owner, key) DO UPDATE SET value = excluded.value, "
            "tags = excluded.tags, etag = excluded.etag, updated_at = excluded.updated_at, "
            "expires_at = excluded.expires_at",
            (store, owner, key, body, json.dumps(dict(tags)), etag, int(now), int(now), expires_at),
        )
        row = connection.execute(
            f"SELECT {_KEY_COLUMNS} FROM items WHERE store = ? AND owner = ? AND key = ?",  # noqa: S608
            (store, owner, key),
        ).fetchone()
        return _item_key(row)

    def _sweep(self, connection: "sqlite3.Connection") -> bool:
        cursor = connection.execute(
            "DELETE FROM items WHERE number IN (SELECT number FROM items WHERE expires_at <= ? LIMIT ?)",
            (self._clock(), _SWEPT_AT_ONCE),
        )
        return cursor.rowcount == _SWEPT_AT_ONCE


def _checked(name: str, key: str, value: Json, tags: Mapping[str, str]) -> bytes:
    limits.check_name(name)
    limits.check_name(key, "key")
    limits.check_tags(dict(tags))
    return limits.encoded_value(value)


def _store(connection: "sqlite3.Connection", name: str) -> tuple[int, StoreInfo]:
    """Raises NotFoundError."""
    row = connection.execute(
        "SELECT number, user_isolation, ttl, description, tags, created_at, updated_at FROM stores WHERE name = ?",
        (name,),
    ).fetchone()
    if row is None:
        raise NotFoundError(f"State store '{name}' not found.", param="name")
    number, isolation, ttl, description, tags, created_at, updated_at = row
    return number, StoreInfo(
        f"ss_{number}", name, bool(isolation), ttl, description, json.loads(tags), created_at, updated_at
    )


def _item_key(row: tuple[Any, ...]) -> ItemKey:
    number, key, etag, created_at, updated_at, tags = row
    return ItemKey(f"it_{number}", key, etag, created_at, updated_at, json.loads(tags))


def _number(key: ItemKey) -> int:
    return int(key.id.removeprefix("it_"))


def _cursor(connection: "sqlite3.Connection", store: int, item_id: str) -> int | None:
    """The place of the item in the order; None, after which nothing comes, when there is no such item."""
    number = item_id.removeprefix("it_")
    if not number.isdecimal() or len(number) > 18:
        return None
    row = connection.execute("SELECT number FROM items WHERE number = ? AND store = ?", (int(number), store)).fetchone()
    return None if row is None else row[0]


def _owner(info: StoreInfo, caller: Caller, user_id: str | None) -> str:
    if not info.user_isolation:
        return ""
    owner = caller.user_id if user_id is None else user_id
    return owner.encode(errors="backslashreplace").decode()


def _check_etag(found: ItemKey | None, if_match: str | None) -> None:
    if if_match is None:
        return
    if found is None or if_match.strip('"') not in ("*", found.etag.strip('"')):
        raise PreconditionFailedError("The item has changed since it was read.", etag=found.etag if found else None)
