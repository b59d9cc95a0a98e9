"""Items that hold a conversation in compacted form."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

from cupola_agent import ids, jsons

Json = dict[str, Any]

_TYPES = ("compaction", "compaction_summary")
_OURS = "cupola1."


def compaction_item(items: Iterable[Mapping[str, Any]], partition: str) -> Json:
    """One item that holds all of these."""
    held = base64.urlsafe_b64encode(jsons.encode(list(items))).decode()
    return {"id": ids.new_id("cmp", partition), "type": "compaction", "encrypted_content": _OURS + held}


def compacted(items: Iterable[Json]) -> list[Json]:
    """The items among these that hold others."""
    return [item for item in items if item.get("type") in _TYPES]


def expanded(item: Json) -> list[Json]:
    """The items that a compaction item of this library holds; any other item is itself."""
    content = item.get("encrypted_content")
    if item.get("type") not in _TYPES or not isinstance(content, str):
        return [item]
    if not content.startswith(_OURS):
        return [item]
    try:
        held = jsons.decode(base64.urlsafe_b64decode(content.removeprefix(_OURS)))
    except (ValueError, binascii.Error):
        return [item]
    return [piece for piece in held if isinstance(piece, dict)] if isinstance(held, list) else [item]
