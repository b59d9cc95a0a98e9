"""State stores: named sets of small values that an agent keeps (container contract, section 4.15)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cupola.domain.errors import invalid_request
from cupola.domain.service_limits import check_tags, check_text, encoded

NAME = 128
VALUE_BYTES = 1024 * 1024
DEFAULT_TTL = 30 * 24 * 3600
FOR_EVER = -1
"""The time to live of items that stay until they are deleted."""
_TTL = range(1, 2**31)


@dataclass(frozen=True)
class StateStore:
    """With `user_isolation` each user has keys of its own. Items live `item_ttl_seconds` after they were last written.

    Times are epoch seconds.
    """

    key: int
    name: str
    user_isolation: bool
    item_ttl_seconds: int
    description: str | None
    tags: dict[str, str]
    created_at: int
    updated_at: int

    def to_wire(self) -> dict[str, Any]:
        """`object: "state_store"`."""
        return {
            "object": "state_store",
            "id": f"ss_{self.key}",
            "name": self.name,
            "user_isolation": self.user_isolation,
            "item_ttl_seconds": self.item_ttl_seconds,
            "description": self.description,
            "tags": self.tags,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


@dataclass(frozen=True)
class StateItem:
    """An item; `value` is its JSON, or None where only the key was asked for."""

    key: int
    name: str
    etag: str
    tags: dict[str, str]
    created_at: int
    updated_at: int
    value: bytes | None = None

    @property
    def id(self) -> str:
        """What lists take for a cursor."""
        return f"it_{self.key}"

    def to_wire(self) -> dict[str, Any]:
        """`object: "state_store.item"`, without the value."""
        return {
            "object": "state_store.item",
            "id": self.id,
            "key": self.name,
            "etag": self.etag,
            "tags": self.tags,
            "created_at": self.created_at,
            "updated_at": self.updated_at,
        }


@dataclass(frozen=True)
class Content:
    """What is written to an item. `value` is the text of a JSON object."""

    value: bytes
    tags: dict[str, str]


def parse_content(fields: Mapping[str, Any]) -> Content:
    """Value and tags of a write. Raises CupolaError (400)."""
    value, tags = fields.get("value"), fields.get("tags")
    if not isinstance(value, dict):
        raise invalid_request("value: expected an object.", "value")
    check_tags(tags)
    return Content(encoded(value, "value", VALUE_BYTES), tags or {})


def check_name(name: Any, param: str) -> str:
    """The name of a store or the key of an item. Raises CupolaError (400)."""
    if isinstance(name, str) and 1 <= len(name) <= NAME:
        return name
    raise invalid_request(f"{param}: expected 1 to {NAME} characters.", param)


def parse_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a store that can be changed, as far as they are given. Raises CupolaError (400)."""
    settings = {name: fields[name] for name in ("description", "tags", "item_ttl_seconds") if name in fields}
    check_text(settings.get("description"), "description", 1024)
    check_tags(settings.get("tags"))
    if "tags" in settings:
        settings["tags"] = settings["tags"] or {}
    ttl = settings.get("item_ttl_seconds", FOR_EVER)
    if not isinstance(ttl, int) or isinstance(ttl, bool) or (ttl != FOR_EVER and ttl not in _TTL):
        text = f"item_ttl_seconds: expected {FOR_EVER}, or 1 to {_TTL.stop - 1} seconds."
        raise invalid_request(text, "item_ttl_seconds")
    return settings
