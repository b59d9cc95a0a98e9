"""Cursor paging over a table whose integer key grows with time (wire contract, section 8.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from sqlalchemy import Column, Connection, Row, Select

Item = TypeVar("Item")


@dataclass(frozen=True)
class PageRequest:
    """What a caller asked for. `after` and `before` are keys of items, resolved from the ids the caller gave."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: int | None = None
    before: int | None = None


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Some items in order, and whether more follow."""

    items: tuple[Item, ...]
    has_more: bool


def select_page(
    connection: Connection, query: Select[Any], key: Column[int], page: PageRequest
) -> tuple[list[Row[Any]], bool]:
    """Run `query` for one page, ordered by `key`; returns the rows and whether more follow."""
    ascending = page.order == "asc"
    if page.after is not None:
        query = query.where(key > page.after if ascending else key < page.after)
    if page.before is not None:
        query = query.where(key < page.before if ascending else key > page.before)
    query = query.order_by(key.asc() if ascending else key.desc()).limit(page.limit + 1)
    rows = list(connection.execute(query))
    return rows[: page.limit], len(rows) > page.limit
