"""Responses as an agent hands them over to be kept (container contract, section 4.12).

The output is taken apart, so that the items of a history can be read without the responses around them. What is kept of
each part is the text that came, byte for byte, with all that public answers leave out later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from cupola.domain.errors import invalid_request

_UNFINISHED = ("queued", "in_progress")

Decoded = TypeVar("Decoded")


@dataclass(frozen=True)
class StoredItem:
    """An item as JSON; `id` is empty when it has none and so cannot be read on its own."""

    id: str
    body: bytes


@dataclass(frozen=True)
class StoredResponse:
    """A response as JSON in parts: `envelope` is an object without its output."""

    id: str
    conversation_id: str | None
    status: str
    envelope: bytes
    output: tuple[StoredItem, ...]

    @property
    def finished(self) -> bool:
        """Whether its status is a last one."""
        return self.status not in _UNFINISHED


@dataclass(frozen=True)
class NewResponse:
    """What `POST /storage/responses` brings: the response, its input, and the ids of what came before, oldest first."""

    response: StoredResponse
    input_items: tuple[StoredItem, ...]
    history: tuple[str, ...]


class _Item(msgspec.Struct):
    id: Any = None


class _New(msgspec.Struct):
    response: msgspec.Raw
    input_items: list[msgspec.Raw] | None = None
    history_item_ids: list[str] | None = None


def parse_new_response(text: bytes) -> NewResponse:
    """Raises CupolaError (400)."""
    fields = decode(text, _New)
    return NewResponse(
        parse_response(bytes(fields.response)),
        tuple(_item(item) for item in fields.input_items or ()),
        tuple(fields.history_item_ids or ()),
    )


def parse_response(text: bytes) -> StoredResponse:
    """Raises CupolaError (400)."""
    fields = decode(text, dict[str, msgspec.Raw])
    response_id = _value(fields, "id")
    if not isinstance(response_id, str) or not response_id:
        raise invalid_request("id: a response needs one.", "id")
    output = bytes(fields.pop("output", msgspec.Raw(b"null")))
    conversation = _value(fields, "conversation")
    if isinstance(conversation, dict):
        conversation = conversation.get("id")
    return StoredResponse(
        id=response_id,
        conversation_id=conversation if isinstance(conversation, str) and conversation else None,
        status=str(_value(fields, "status"))[:64],
        envelope=msgspec.json.encode(fields),
        output=() if output == b"null" else tuple(_item(item) for item in decode(output, list[msgspec.Raw])),
    )


def response_text(envelope: bytes, output: list[bytes]) -> bytes:
    """The whole response as JSON. An envelope has at least an id."""
    return b"".join((envelope[:-1], b',"output":', list_text(output), b"}"))


def list_text(bodies: list[bytes]) -> bytes:
    """A JSON array of what is JSON already."""
    return b"".join((b"[", b",".join(bodies), b"]"))


def decode(text: bytes, kind: type[Decoded]) -> Decoded:
    """JSON as `kind`. Raises CupolaError (400)."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise invalid_request(f"The body is not as expected: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid_request(f"The body is not JSON: {error}.") from error


def _value(fields: dict[str, msgspec.Raw], name: str) -> Any:
    return decode(bytes(fields[name]), object) if name in fields else None


def _item(raw: msgspec.Raw) -> StoredItem:
    body = bytes(raw)
    item_id = decode(body, _Item).id
    return StoredItem(item_id if isinstance(item_id, str) else "", body)
