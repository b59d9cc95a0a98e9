"""Responses in a SQLite file below the state root: they outlive the process."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cupola_agent import jsons
from cupola_agent.call import Caller
from cupola_agent.stores.base import AlreadyExistsError, ItemPage, Json
from cupola_agent.stores.records import (
    RETENTION_SECONDS,
    EncodedItem,
    EncodedResponse,
    decode,
    decode_items,
    decode_response,
    encode_items,
    newest,
    not_found,
    page_ids,
)
from cupola_agent.stores.sqlite import Database, Schema

if TYPE_CHECKING:
    import sqlite3

FILE_NAME = "responses.sqlite"

_INPUT, _OUTPUT = 0, 1
_SWEPT_AT_ONCE = 50

# Ids are blobs: they come from strangers, and half a surrogate pair is no SQLite text.
_STATEMENTS = (
    """CREATE TABLE responses (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id BLOB NOT NULL UNIQUE,
        owner BLOB NOT NULL,
        conversation BLOB,
        turn INTEGER,
        history BLOB NOT NULL,
        envelope BLOB NOT NULL,
        expires_at REAL NOT NULL
    )""",
    "CREATE INDEX responses_by_expiry ON responses (expires_at)",
    "CREATE INDEX responses_by_conversation ON responses (conversation, turn) WHERE turn IS NOT NULL",
    """CREATE TABLE items (
        response INTEGER NOT NULL,
        side INTEGER NOT NULL,
        position INTEGER NOT NULL,
        owner BLOB NOT NULL,
        id BLOB,
        body BLOB NOT NULL,
        PRIMARY KEY (response, side, position)
    ) WITHOUT ROWID""",
    "CREATE INDEX items_by_id ON items (id, owner, response) WHERE id IS NOT NULL",
    "CREATE TABLE turns (last INTEGER NOT NULL)",
    "INSERT INTO turns VALUES (0)",
)


class LocalResponseStore:
    """A ResponseStore in `responses.sqlite` in the folder; forgets what was not written for `retention_seconds`."""

    def __init__(
        self,
        folder: Path,
        *,
        retention_seconds: float = RETENTION_SECONDS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._retention = retention_seconds
        self._clock = clock
        self._database = Database(folder / FILE_NAME, Schema(1, _STATEMENTS, self._sweep))

    def open(self) -> None:
        """Begins to open the file in the background; the first call does it otherwise."""
        self._database.open()

    async def create(
        self, response: Json, input_items: Sequence[Json], history_item_ids: Sequence[str], caller: Caller
    ) -> None:
        encoded = EncodedResponse.of(response)
        inputs, history, owner = encode_items(input_items), jsons.encode(list(history_item_ids)), _blob(caller.user_id)

        def job(connection: "sqlite3.Connection") -> None:
            now = self._clock()
            taken = connection.execute(
                "SELECT number, expires_at FROM responses WHERE id = ?", (_blob(encoded.response_id),)
            ).fetchone()
            if taken and taken[1] > now:
                raise AlreadyExistsError(f"Response with id '{encoded.response_id}' already exists.")
            if taken:
                _remove(connection, taken[0])
            number = connection.execute(
                "INSERT INTO responses (id, owner, conversation, turn, history, envelope, expires_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    _blob(encoded.response_id),
                    owner,
                    _blob(encoded.conversation_id) if encoded.conversation_id else None,
                    _next_turn(connection) if encoded.conversation_id and encoded.finished else None,
                    history,
                    encoded.envelope,
                    now + self._retention,
                ),
            ).lastrowid
            _insert_items(connection, number, _INPUT, owner, inputs)
            _insert_items(connection, number, _OUTPUT, owner, encoded.output)

        await self._database.write(job)

    async def update(self, response: Json, caller: Caller) -> None:
        encoded = EncodedResponse.of(response)

        def job(connection: "sqlite3.Connection") -> None:
            number, owner = self._find(connection, encoded.response_id, caller)
            (turn,) = connection.execute("SELECT turn FROM responses WHERE number = ?", (number,)).fetchone()
            if not encoded.conversation_id or not encoded.finished:
                turn = None
            elif turn is None:
                turn = _next_turn(connection)
            connection.execute(
                "UPDATE responses SET conversation = ?, turn = ?, envelope = ?, expires_at = ? WHERE number = ?",
                (
                    _blob(encoded.conversation_id) if encoded.conversation_id else None,
                    turn,
                    encoded.envelope,
                    self._clock() + self._retention,
                    number,
                ),
            )
            connection.execute("DELETE FROM items WHERE response = ? AND side = ?", (number, _OUTPUT))
            _insert_items(connection, number, _OUTPUT, owner, encoded.output)

        await self._database.write(job)

    async def get(self, response_id: str, caller: Caller) -> Json:
        def job(connection: "sqlite3.Connection") -> tuple[bytes, list[bytes]]:
            number, _ = self._find(connection, response_id, caller)
            (envelope,) = connection.execute("SELECT envelope FROM responses WHERE number = ?", (number,)).fetchone()
            output = connection.execute(
                "SELECT body FROM items WHERE response = ? AND side = ? ORDER BY position", (number, _OUTPUT)
            )
            return envelope, [body for (body,) in output]

        return decode_response(*await self._database.read(job))

    async def delete(self, response_id: str, caller: Caller) -> None:
        def job(connection: "sqlite3.Connection") -> None:
            number, _ = self._find(connection, response_id, caller)
            _remove(connection, number)

        await self._database.write(job)

    async def input_items(
        self, response_id: str, caller: Caller, *, limit: int, ascending: bool, after: str | None, before: str | None
    ) -> ItemPage:
        def job(connection: "sqlite3.Connection") -> list[bytes]:
            number, _ = self._find(connection, response_id, caller)
            own = connection.execute(
                "SELECT id, body FROM items WHERE response = ? AND side = ? AND id IS NOT NULL ORDER BY position",
                (number, _INPUT),
            )
            bodies_of_own = {_text(item_id): body for item_id, body in own}
            ids = newest((*_history(connection, number), *bodies_of_own), -1)
            bodies: list[bytes] = []
            for item_id in page_ids(ids, ascending=ascending, after=after, before=before):
                body = bodies_of_own.get(item_id) or self._item(connection, item_id, caller)
                if body is not None:
                    bodies.append(body)
                if len(bodies) > limit:
                    break
            return bodies

        bodies = await self._database.read(job)
        return ItemPage(tuple(decode_items(bodies[:limit])), len(bodies) > limit)

    async def items(self, item_ids: Sequence[str], caller: Caller) -> list[Json | None]:
        def job(connection: "sqlite3.Connection") -> list[bytes | None]:
            return [self._item(connection, item_id, caller) for item_id in item_ids]

        bodies = await self._database.read(job)
        found = iter(decode_items([body for body in bodies if body is not None]))
        return [None if body is None else next(found) for body in bodies]

    async def history_item_ids(
        self, caller: Caller, *, previous_response_id: str | None, conversation_id: str | None, limit: int = -1
    ) -> list[str]:
        def job(connection: "sqlite3.Connection") -> list[str]:
            ids: list[str] = []
            if previous_response_id is not None:
                number, _ = self._find(connection, previous_response_id, caller)
                ids += _history(connection, number)
                own = connection.execute(
                    "SELECT id FROM items WHERE response = ? AND id IS NOT NULL ORDER BY side, position", (number,)
                )
                ids += (_text(item_id) for (item_id,) in own)
            if conversation_id is not None:
                rows = connection.execute(
                    "SELECT items.id FROM responses JOIN items ON items.response = responses.number "
                    "WHERE conversation = ? AND turn IS NOT NULL AND responses.owner IN (x'', ?) AND expires_at > ? "
                    "AND items.id IS NOT NULL ORDER BY turn, side, position",
                    (_blob(conversation_id), _blob(caller.user_id), self._clock()),
                )
                ids += (_text(item_id) for (item_id,) in rows)
            return newest(ids, limit)

        return await self._database.read(job)

    async def close(self) -> None:
        await self._database.close()

    def _find(self, connection: "sqlite3.Connection", response_id: str, caller: Caller) -> tuple[int, bytes]:
        """Number and owner of a response the caller may see. Raises NotFoundError."""
        row: tuple[int, bytes] | None = connection.execute(
            "SELECT number, owner FROM responses WHERE id = ? AND owner IN (x'', ?) AND expires_at > ?",
            (_blob(response_id), _blob(caller.user_id), self._clock()),
        ).fetchone()
        if row is None:
            raise not_found(response_id)
        return row

    def _item(self, connection: "sqlite3.Connection", item_id: str, caller: Caller) -> bytes | None:
        """The newest item of this id, the caller's own before one that is open to everyone."""
        for owner in dict.fromkeys((caller.user_id, "")):
            row: tuple[bytes] | None = connection.execute(
                "SELECT body FROM items JOIN responses ON number = response "
                "WHERE items.id = ? AND items.owner = ? AND expires_at > ? ORDER BY response DESC LIMIT 1",
                (_blob(item_id), _blob(owner), self._clock()),
            ).fetchone()
            if row is not None:
                return row[0]
        return None

    def _sweep(self, connection: "sqlite3.Connection") -> bool:
        old = connection.execute(
            "SELECT number FROM responses WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
            (self._clock(), _SWEPT_AT_ONCE),
        ).fetchall()
        for (number,) in old:
            _remove(connection, number)
        return len(old) == _SWEPT_AT_ONCE


def _insert_items(
    connection: "sqlite3.Connection", number: int | None, side: int, owner: bytes, items: Iterable[EncodedItem]
) -> None:
    connection.executemany(
        "INSERT INTO items (response, side, position, owner, id, body) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (number, side, position, owner, _blob(item.item_id) if item.item_id else None, item.body)
            for position, item in enumerate(items)
        ],
    )


def _remove(connection: "sqlite3.Connection", number: int) -> None:
    connection.execute("DELETE FROM items WHERE response = ?", (number,))
    connection.execute("DELETE FROM responses WHERE number = ?", (number,))


def _history(connection: "sqlite3.Connection", number: int) -> list[str]:
    (history,) = connection.execute("SELECT history FROM responses WHERE number = ?", (number,)).fetchone()
    ids: list[str] = decode(history)
    return ids


def _next_turn(connection: "sqlite3.Connection") -> int:
    """Counts the turns that ended: a conversation is read in the order in which they did."""
    (turn,) = connection.execute("UPDATE turns SET last = last + 1 RETURNING last").fetchone()
    return int(turn)


def _blob(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode(errors="surrogatepass")
