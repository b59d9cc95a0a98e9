"""What keeps state does, whichever it is (contract section 4.15)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cupola_agent.call import Caller
from cupola_agent.stores.base import Json

DEFAULT_TTL_SECONDS = 30 * 24 * 3600
NO_EXPIRY = -1


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """What a store is created with.

    `user_isolation` gives each user keys of their own. An item is forgotten `item_ttl_seconds` after it was written
    last, never with -1.
    """

    user_isolation: bool = False
    item_ttl_seconds: int = DEFAULT_TTL_SECONDS
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {
            "user_isolation": self.user_isolation,
            "item_ttl_seconds": self.item_ttl_seconds,
            "description": self.description,
            "tags": dict(self.tags) or None,
        }


@dataclass(frozen=True, slots=True)
class StoreInfo:
    """A store as it is kept. Times are in seconds of the Unix epoch."""

    id: str
    name: str
    user_isolation: bool
    item_ttl_seconds: int
    description: str | None
    tags: Mapping[str, str]
    created_at: int
    updated_at: int

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "StoreInfo":
        return cls(
            id=fields["id"],
            name=fields["name"],
            user_isolation=fields.get("user_isolation", False),
            item_ttl_seconds=fields.get("item_ttl_seconds", DEFAULT_TTL_SECONDS),
            description=fields.get("description"),
            tags=fields.get("tags") or {},
            created_at=fields.get("created_at", 0),
            updated_at=fields.get("updated_at", 0),
        )


@dataclass(frozen=True, slots=True)
class ItemKey:
    """An item without its value. Times are in seconds of the Unix epoch."""

    id: str
    key: str
    etag: str
    created_at: int
    updated_at: int
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "ItemKey":
        return cls(
            id=fields["id"],
            key=fields["key"],
            etag=fields["etag"],
            created_at=fields.get("created_at", 0),
            updated_at=fields.get("updated_at", 0),
            tags=fields.get("tags") or {},
        )


@dataclass(frozen=True, slots=True)
class Item:
    """A value with its key."""

    key: ItemKey
    value: Json

    @property
    def etag(self) -> str:
        return self.key.etag


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Some keys in the order asked for; the id of the last is the cursor to those that follow."""

    keys: tuple[ItemKey, ...]
    has_more: bool


class StateBackend(Protocol):
    """Where stores and their items are kept.

    Missing stores raise NotFoundError, as a missing item does on `get_item`; wrong requests raise RefusedError, a
    stale ETag PreconditionFailedError. `if_match` is an ETag, or `*` for whatever exists. `user_id` names the user to
    act for; without one it is the caller.
    """

    async def create_store(self, name: str, settings: StoreSettings, caller: Caller) -> StoreInfo:
        """Raises AlreadyExistsError."""
        ...

    async def get_store(self, name: str, caller: Caller) -> StoreInfo: ...

    async def update_store(self, name: str, changes: Json, caller: Caller) -> StoreInfo:
        """Replaces `description`, `tags` and `item_ttl_seconds`, as far as given."""
        ...

    async def delete_store(self, name: str, caller: Caller) -> None:
        """Deletes the store with its items; a missing one is no error."""
        ...

    async def create_item(
        self, name: str, key: str, value: Json, tags: Mapping[str, str], caller: Caller, user_id: str | None
    ) -> ItemKey:
        """Raises AlreadyExistsError."""
        ...

    async def put_item(
        self,
        name: str,
        key: str,
        value: Json,
        tags: Mapping[str, str],
        caller: Caller,
        user_id: str | None,
        if_match: str | None,
    ) -> ItemKey: ...

    async def get_item(self, name: str, key: str, caller: Caller, user_id: str | None) -> Item: ...

    async def delete_item(self, name: str, key: str, caller: Caller, user_id: str | None, if_match: str | None) -> None:
        """A missing item is no error, unless `if_match` is given."""
        ...

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
        """At most 100 keys in the order of their creation; nothing follows an unknown cursor."""
        ...

    async def close(self) -> None: ...
