"""What memory and local store have in common: a response taken apart, and pages of items.

Items are kept apart from the response they belong to, each encoded once, so that a history can be read without the
responses around it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cupola_agent import jsons
from cupola_agent.call import Caller
from cupola_agent.stores.base import Json, NotFoundError, RefusedError

RETENTION_SECONDS = 30 * 24 * 3600
MAX_RESPONSE_BYTES = 64 * 1024 * 1024

_UNFINISHED = ("queued", "in_progress")


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """An item as JSON. `item_id` is "" for one that has no id and so cannot be read on its own."""

    item_id: str
    body: bytes


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """A response as JSON, with its output apart: `envelope` has an empty one."""

    response_id: str
    conversation_id: str | None
    finished: bool
    envelope: bytes
    output: tuple[EncodedItem, ...]

    @classmethod
    def of(cls, response: Json) -> "EncodedResponse":
        """Raises RefusedError for what is not JSON, has no id, or is too large."""
        response_id = response.get("id")
        if not isinstance(response_id, str) or not response_id:
            raise RefusedError("A response needs an id.", param="id")
        encoded = cls(
            response_id=response_id,
            conversation_id=conversation_of(response),
            finished=response.get("status") not in _UNFINISHED,
            envelope=_encode({**response, "output": []}),
            output=encode_items(response.get("output") or ()),
        )
        if encoded.size > MAX_RESPONSE_BYTES:
            raise RefusedError(f"A response may have at most {MAX_RESPONSE_BYTES} bytes.")
        return encoded

    @property
    def size(self) -> int:
        return len(self.envelope) + sum(len(item.body) for item in self.output)


def encode_items(items: Sequence[Json]) -> tuple[EncodedItem, ...]:
    """Raises RefusedError for what is not JSON."""
    return tuple(EncodedItem(_item_id(item), _encode(item)) for item in items)


def decode_response(envelope: bytes, output: Sequence[bytes]) -> Json:
    response: Json = decode(envelope)
    response["output"] = decode_items(output)
    return response


def decode_items(bodies: Sequence[bytes]) -> list[Json]:
    items: list[Json] = decode(b"[" + b",".join(bodies) + b"]")
    return items


def decode(body: bytes) -> Any:
    """What a store wrote itself. Half a surrogate pair, which `jsons.decode` refuses, may be in it."""
    try:
        return jsons.decode(body)
    except ValueError:
        import json

        return json.loads(body)


def conversation_of(response: Json) -> str | None:
    conversation = response.get("conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return conversation if isinstance(conversation, str) and conversation else None


def visible(owner: str, caller: Caller) -> bool:
    """Whether the caller may see what the owner made: everyone may when it was made without a user id."""
    return owner in ("", caller.user_id)


def not_found(response_id: str) -> NotFoundError:
    return NotFoundError(f"Response with id '{response_id}' not found.", param="response_id")


def page_ids(ids: Sequence[str], *, ascending: bool, after: str | None, before: str | None) -> list[str]:
    """The ids in the order asked for, between the cursors; an unknown cursor is ignored."""
    ordered = list(ids) if ascending else list(reversed(ids))
    if after is not None and after in ordered:
        ordered = ordered[ordered.index(after) + 1 :]
    if before is not None and before in ordered:
        ordered = ordered[: ordered.index(before)]
    return ordered


def newest(ids: Sequence[str], limit: int) -> list[str]:
    """The ids without repetitions, at most the `limit` newest; -1 is no limit."""
    unique = list(dict.fromkeys(ids))
    if limit < 0:
        return unique
    return unique[-limit:] if limit else []


def _item_id(item: Json) -> str:
    item_id = item.get("id")
    return item_id if isinstance(item_id, str) else ""


def _encode(value: Json) -> bytes:
    try:
        return jsons.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise RefusedError(f"Not JSON: {error}") from None
