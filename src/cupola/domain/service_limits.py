"""What the calls of agents may hold, as far as stores have it in common (container contract, sections 4.14 and 4.15).

Each check raises CupolaError (400, `invalid_request`).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from cupola.domain.errors import invalid_request

RETENTION = 30 * 24 * 3600
"""Seconds after its last change when a response or a completed task is forgotten."""
TAGS = 16
_TAG_VALUE = 256
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def check_key(key: str, param: str) -> None:
    """The name of a tag or an attachment."""
    if not _KEY.fullmatch(key):
        raise invalid_request(f"{param}: a key has 1 to 64 letters, digits, or any of `_.-`.", param)


def check_tags(tags: Any, *, nulls: bool = False) -> None:
    """An object of texts, or None; in a patch, with `nulls`, a null stands for a tag to be removed."""
    if tags is None:
        return
    if not isinstance(tags, dict) or len(tags) > TAGS:
        raise invalid_request(f"tags: expected an object of at most {TAGS} entries.", "tags")
    for key, value in tags.items():
        check_key(key, "tags")
        if value is None and nulls:
            continue
        if not isinstance(value, str) or len(value) > _TAG_VALUE:
            raise invalid_request(f"tags: a value is a text of at most {_TAG_VALUE} characters.", "tags")


def check_text(value: Any, param: str, most: int, *, least: int = 0) -> None:
    """A text of so many characters, of which not all are blank if it must have any. None is a text that is not there."""
    if value is None and not least:
        return
    if not isinstance(value, str) or len(value.strip()) < least or len(value) > most:
        raise invalid_request(f"{param}: expected a text of {least} to {most} characters.", param)


def encoded(value: Any, param: str, most: int) -> bytes:
    """A value as JSON, of at most so many bytes."""
    text = msgspec.json.encode(value)
    if len(text) > most:
        raise invalid_request(f"{param}: {len(text)} bytes of JSON are more than the limit, {most}.", param)
    return text
