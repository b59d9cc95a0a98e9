"""State kept by the platform (contract section 4.15)."""

from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from cupola_agent.call import Caller
from cupola_agent.platform.api import Platform
from cupola_agent.state import limits
from cupola_agent.state.base import Item, ItemKey, KeyPage, StoreInfo, StoreSettings
from cupola_agent.stores.base import Json, UnavailableError

_ROOT = "/storage/state_stores"

Parsed = TypeVar("Parsed")


class PlatformStateBackend:
    """A StateBackend on the platform. Closing it closes the connections of `platform`.

    An item call tells the platform its user by the call id of the request that is answered, or by name when the agent
    acts for a user of its own choice.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    async def create_store(self, name: str, settings: StoreSettings, caller: Caller) -> StoreInfo:
        limits.check_name(name)
        limits.check_settings(settings)
        body = {"name": name, **settings.to_json()}
        reply = await self._platform.call("POST", _ROOT, body=body, caller=caller)
        return _parsed(StoreInfo.from_json, reply.body)

    async def get_store(self, name: str, caller: Caller) -> StoreInfo:
        reply = await self._platform.call("GET", _store(name), caller=caller)
        return _parsed(StoreInfo.from_json, reply.body)

    async def update_store(self, name: str, changes: Json, caller: Caller) -> StoreInfo:
        limits.check_changes(changes)
        reply = await self._platform.call("PATCH", _store(name), body=changes, caller=caller)
        return _parsed(StoreInfo.from_json, reply.body)

    async def delete_store(self, name: str, caller: Caller) -> None:
        await self._platform.call("DELETE", _store(name), caller=caller)

    async def create_item(
        self, name: str, key: str, value: Json, tags: Mapping[str, str], caller: Caller, user_id: str | None
    ) -> ItemKey:
        limits.check_name(key, "key")
        body = {"key": key, **_content(value, tags)}
        reply = await self._platform.call(
            "POST", f"{_store(name)}/items", body=body, caller=caller, headers=_headers(user_id)
        )
        return _parsed(ItemKey.from_json, reply.body)

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
        body = _content(value, tags)
        reply = await self._platform.call(
            "PUT", _item(name, key), body=body, caller=caller, headers=_headers(user_id, if_match)
        )
        return _parsed(ItemKey.from_json, reply.body)

    async def get_item(self, name: str, key: str, caller: Caller, user_id: str | None) -> Item:
        reply = await self._platform.call("GET", _item(name, key), caller=caller, headers=_headers(user_id))
        return Item(_parsed(ItemKey.from_json, reply.body), _parsed(lambda fields: dict(fields["value"]), reply.body))

    async def delete_item(self, name: str, key: str, caller: Caller, user_id: str | None, if_match: str | None) -> None:
        await self._platform.call("DELETE", _item(name, key), caller=caller, headers=_headers(user_id, if_match))

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
        limits.check_tags(dict(tags))
        limits.check_page(limit)
        query = {
            "limit": str(limit),
            "order": "desc" if newest_first else "asc",
            **{f"tags.{key}": value for key, value in tags.items()},
        }
        if after is not None:
            query["after"] = after
        reply = await self._platform.call(
            "GET", f"{_store(name)}/items:keys", query=query, caller=caller, headers=_headers(user_id)
        )
        return _parsed(_page, reply.body)

    async def close(self) -> None:
        await self._platform.close()


def _store(name: str) -> str:
    limits.check_name(name)
    return f"{_ROOT}/{_base64(name)}"


def _item(name: str, key: str) -> str:
    limits.check_name(key, "key")
    return f"{_store(name)}/items/{_base64(key)}"


def _base64(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _content(value: Json, tags: Mapping[str, str]) -> Json:
    limits.check_tags(dict(tags))
    limits.encoded_value(value)
    return {"value": value, "tags": dict(tags) or None}


def _headers(user_id: str | None, if_match: str | None = None) -> dict[str, str]:
    named = {"x-ms-user-id": user_id, "if-match": if_match}
    return {name: value for name, value in named.items() if value is not None}


def _page(fields: Mapping[str, Any]) -> KeyPage:
    return KeyPage(tuple(ItemKey.from_json(key) for key in fields["data"]), bool(fields.get("has_more")))


def _parsed(parse: Callable[[Any], Parsed], body: Any) -> Parsed:
    try:
        return parse(body)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnavailableError(f"The platform answered with something else than was asked for: {error!r}") from error
