"""Identifiers of the Responses protocol (contract section 4.2).

`{prefix}_{partition}{entropy}`: 18 characters of partition, which a chain of responses and all their items
share, and 32 characters of entropy. Ids with a body of 48 characters are an older shape that ends in its
partition of 16; they are accepted and never made.
"""

import re

from cupola_agent.randomness import random_bytes

RESPONSE_PREFIX = "caresp"

_ENTROPY = 32
_BODY = 50
_OLD_BODY = 48
_OLD_PARTITION = 16
_ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TO_ALPHABET = bytes(_ALPHABET[value % len(_ALPHABET)] for value in range(256))
_SAFE = re.compile(r"[A-Za-z0-9_.:-]{1,256}")


def new_partition() -> str:
    return random_bytes(8).hex() + "00"


def new_id(prefix: str, partition: str) -> str:
    return f"{prefix}_{partition}{random_bytes(_ENTROPY).translate(_TO_ALPHABET).decode()}"


def partition_of(identifier: str) -> str | None:
    """The partition to inherit from an id, or None when the id has another shape."""
    _, separator, body = identifier.rpartition("_")
    if not separator or not body.isalnum():
        return None
    if len(body) == _BODY:
        return body[: _BODY - _ENTROPY]
    if len(body) == _OLD_BODY:
        return body[-_OLD_PARTITION:] + "00"
    return None


def is_response_id(text: str) -> bool:
    prefix, _, body = text.partition("_")
    return prefix == RESPONSE_PREFIX and len(body) in (_BODY, _OLD_BODY)


def is_safe_id(text: str) -> bool:
    """True for the session and invocation ids that may be echoed in a header (contract section 5.1)."""
    return _SAFE.fullmatch(text) is not None


def new_uuid() -> str:
    """A hyphenated version 4 UUID; `import uuid` alone would cost a cold start some milliseconds."""
    value = bytearray(random_bytes(16))
    value[6] = value[6] & 0x0F | 0x40
    value[8] = value[8] & 0x3F | 0x80
    text = value.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
