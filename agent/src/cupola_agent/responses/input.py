"""The input of a response: as items to store, and as the text a handler reads (contract section 4.2)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from cupola_agent import ids
from cupola_agent.responses.prefixes import ITEM_PREFIXES


def input_items(given: str | list[dict[str, Any]] | None, partition: str) -> tuple[dict[str, Any], ...]:
    """The input as a list of items with ids; a text is one message of the user."""
    if given is None:
        return ()
    if isinstance(given, str):
        content = [{"type": "input_text", "text": given}]
        given = [{"type": "message", "role": "user", "content": content}]
    return tuple(_stored(item, partition) for item in given)


def _stored(item: Mapping[str, Any], partition: str) -> dict[str, Any]:
    kind = item.get("type", "message")
    stored = {"type": kind, **item, "status": "completed"}
    content = stored.get("content")
    if kind == "message" and isinstance(content, str):
        part = "output_text" if stored.get("role") == "assistant" else "input_text"
        stored["content"] = [{"type": part, "text": content}]
    prefix = ITEM_PREFIXES.get(kind)
    if prefix is not None and not item.get("id"):
        stored["id"] = ids.new_id(prefix, partition)
    return stored


def user_text(items: Iterable[Mapping[str, Any]]) -> str:
    """The text of the user's messages; the texts of several messages or parts are joined by newlines."""
    return "\n".join(text for item in items for text in _texts(item))


def _texts(item: Mapping[str, Any]) -> Iterator[str]:
    if item["type"] != "message" or item["role"] != "user":
        return
    content = item["content"]
    if isinstance(content, str):
        yield content
        return
    for part in content:
        if part["type"] == "input_text":
            yield part["text"]
