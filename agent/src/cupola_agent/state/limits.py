"""What stores and items may be made of (contract section 4.15). Each check raises RefusedError."""

from collections.abc import Mapping
from typing import Any

from cupola_agent import jsons
from cupola_agent.state.base import StoreSettings
from cupola_agent.stores.base import Json, RefusedError
from cupola_agent.tasks import limits as task_limits

MAX_NAME = 128
MAX_VALUE_BYTES = 1024 * 1024
MAX_DESCRIPTION = 1024
MAX_TTL_SECONDS = 2**31 - 1
MAX_PAGE = 100


def check_name(name: Any, param: str = "name") -> None:
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise RefusedError(f"{param} must have 1 to {MAX_NAME} characters", param=param)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise RefusedError(f"{param} must be Unicode text", param=param) from None


def check_settings(settings: StoreSettings) -> None:
    check_changes(settings.to_json())


def check_changes(fields: Mapping[str, Any]) -> None:
    description, ttl = fields.get("description"), fields.get("item_ttl_seconds", -1)
    if description is not None and (not isinstance(description, str) or len(description) > MAX_DESCRIPTION):
        raise RefusedError(f"description may have at most {MAX_DESCRIPTION} characters", param="description")
    if not isinstance(ttl, int) or isinstance(ttl, bool) or not (ttl == -1 or 1 <= ttl <= MAX_TTL_SECONDS):
        raise RefusedError("item_ttl_seconds must be -1 or a positive number of seconds", param="item_ttl_seconds")
    check_tags(fields.get("tags"))


def check_tags(tags: Any) -> None:
    task_limits.check_tags(tags)
    if tags is not None and None in tags.values():
        raise RefusedError("a tag's value must be a string", param="tags")


def encoded_value(value: Json) -> bytes:
    """The value as JSON."""
    if not isinstance(value, dict):
        raise RefusedError("value must be a JSON object", param="value")
    try:
        encoded = jsons.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RefusedError(f"value is not JSON: {error}", param="value") from None
    if len(encoded) > MAX_VALUE_BYTES:
        raise RefusedError(f"value may have at most {MAX_VALUE_BYTES} bytes as JSON", param="value")
    return encoded


def check_page(limit: int) -> None:
    if not 1 <= limit <= MAX_PAGE:
        raise RefusedError(f"limit must be from 1 to {MAX_PAGE}", param="limit")
