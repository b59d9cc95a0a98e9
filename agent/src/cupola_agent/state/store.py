"""The state store that agent code uses: named values that outlive the request and the process."""

import os
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType

from cupola_agent.call import current_call
from cupola_agent.state.base import DEFAULT_TTL_SECONDS, Item, ItemKey, KeyPage, StateBackend, StoreInfo, StoreSettings
from cupola_agent.stores.base import AlreadyExistsError, Json, NotFoundError

_PAGE = 100


def default_backend(variables: Mapping[str, str]) -> StateBackend:
    """The platform when hosted (`FOUNDRY_HOSTING_ENVIRONMENT`), a file below the state root otherwise."""
    if variables.get("FOUNDRY_HOSTING_ENVIRONMENT"):
        from cupola_agent.platform.api import Platform
        from cupola_agent.state.platform import PlatformStateBackend

        return PlatformStateBackend(Platform.from_environment(variables))
    from cupola_agent.state.local import LocalStateBackend
    from cupola_agent.stores.sqlite import state_root

    return LocalStateBackend(state_root(variables))


class StateStore:
    """Values by key, in a store of this name.

        async with StateStore("notes", user_isolation=True) as notes:
            await notes.put("today", {"text": "buy bread"})

    The store is made when it is first used; settings count only then. A value is a JSON object of at most 1 MB, a key
    has 1 to 128 characters. With `user_isolation` each user has keys of their own: the user of the request that is
    answered, or `user_id`. An item is forgotten `ttl_seconds` after it was written last, never with -1.

    Each method raises StoreError: UnavailableError when the store does not work, RefusedError beyond a limit.
    """

    def __init__(
        self,
        name: str,
        *,
        user_isolation: bool = False,
        ttl_seconds: int = DEFAULT_TTL_SECONDS,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        user_id: str | None = None,
        backend: StateBackend | None = None,
    ) -> None:
        self._name = name
        self._settings = StoreSettings(user_isolation, ttl_seconds, description, dict(tags or {}))
        self._user_id = user_id
        self._given_backend = backend
        self._backend = backend
        self._exists = False

    async def __aenter__(self) -> "StateStore":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def put(
        self, key: str, value: Json, *, tags: Mapping[str, str] | None = None, if_match: str | None = None
    ) -> ItemKey:
        """Writes a value, whether or not the key has one.

        With `if_match` only over the item of that ETag (`*`: over any); raises PreconditionFailedError otherwise.
        """
        backend = await self._ready()
        return await backend.put_item(self._name, key, value, tags or {}, current_call(), self._user_id, if_match)

    async def create(self, key: str, value: Json, *, tags: Mapping[str, str] | None = None) -> ItemKey:
        """Writes a value under a key that has none. Raises AlreadyExistsError."""
        backend = await self._ready()
        return await backend.create_item(self._name, key, value, tags or {}, current_call(), self._user_id)

    async def get(self, key: str) -> Json | None:
        """The value, None when there is none."""
        item = await self.item(key)
        return None if item is None else item.value

    async def item(self, key: str) -> Item | None:
        """The value with its ETag, tags and times, None when there is none."""
        backend = await self._ready()
        try:
            return await backend.get_item(self._name, key, current_call(), self._user_id)
        except NotFoundError:
            return None

    async def delete(self, key: str, *, if_match: str | None = None) -> None:
        """Deletes the item if there is one; with `if_match` only that of this ETag, else PreconditionFailedError."""
        backend = await self._ready()
        await backend.delete_item(self._name, key, current_call(), self._user_id, if_match)

    async def keys(
        self, *, tags: Mapping[str, str] | None = None, newest_first: bool = True
    ) -> AsyncGenerator[str, None]:
        """The keys in the order of their creation; with `tags` those that have all of them."""
        after = None
        while True:
            page = await self.page(tags=tags, newest_first=newest_first, after=after)
            for found in page.keys:
                yield found.key
            if not page.has_more or not page.keys:
                return
            after = page.keys[-1].id

    async def page(
        self,
        *,
        tags: Mapping[str, str] | None = None,
        limit: int = _PAGE,
        after: str | None = None,
        newest_first: bool = True,
    ) -> KeyPage:
        """Up to 100 keys after the item with the id `after`, with ETags, tags and times."""
        backend = await self._ready()
        return await backend.list_keys(
            self._name,
            current_call(),
            self._user_id,
            tags=tags or {},
            limit=limit,
            after=after,
            newest_first=newest_first,
        )

    async def info(self) -> StoreInfo:
        """The store itself: its settings as they are kept."""
        backend = await self._ready()
        return await backend.get_store(self._name, current_call())

    async def update(
        self,
        *,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
        ttl_seconds: int | None = None,
    ) -> StoreInfo:
        """Changes what is given; "" and {} clear. A new lifetime counts for items written from then on."""
        changes: Json = {}
        if description is not None:
            changes["description"] = description or None
        if tags is not None:
            changes["tags"] = dict(tags)
        if ttl_seconds is not None:
            changes["item_ttl_seconds"] = ttl_seconds
        backend = await self._ready()
        return await backend.update_store(self._name, changes, current_call())

    async def drop(self) -> None:
        """Deletes the store with all its items, of all users; the next use makes it anew."""
        await self._made_backend().delete_store(self._name, current_call())
        self._exists = False

    async def close(self) -> None:
        """Ends what the store runs, unless its backend was given; it can be used again afterwards."""
        if self._given_backend is None and self._backend is not None:
            backend, self._backend = self._backend, None
            await backend.close()

    def _made_backend(self) -> StateBackend:
        if self._backend is None:
            self._backend = default_backend(os.environ)
        return self._backend

    async def _ready(self) -> StateBackend:
        """The backend, once the store exists."""
        backend = self._made_backend()
        if not self._exists:
            try:
                await backend.get_store(self._name, current_call())
            except NotFoundError:
                try:
                    await backend.create_store(self._name, self._settings, current_call())
                except AlreadyExistsError:
                    await backend.get_store(self._name, current_call())
            self._exists = True
        return backend
