"""Identifiers that the platform makes. None of them holds `:` or `/`, which clients treat differently in paths."""

from __future__ import annotations

import re
import secrets
import uuid

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"

AGENT_NAME = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?")
RESPONSE_ID = re.compile(r"caresp_([0-9a-f]{16}00)[A-Za-z0-9]{32}")
_PARTITIONED = re.compile(r"[a-z]+_([0-9a-f]{16}00)[A-Za-z0-9]{32}")
SESSION_ID = re.compile(r"[A-Za-z0-9_-]{8,128}")


def random_text(length: int) -> str:
    """Lower-case letters and digits, each unpredictable: 5.17 bits a character."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_session_id() -> str:
    """A session id: 134 bits, within the documented form `[A-Za-z0-9_-]{8,128}`."""
    return f"sess_{random_text(26)}"


def new_response_id(*before: str | None) -> str:
    """An id for a response (container contract, section 4.2), in the partition of the first id before it that has one."""
    matches = (_PARTITIONED.fullmatch(one or "") for one in before)
    partition = next((match[1] for match in matches if match), None) or f"{secrets.token_hex(8)}00"
    return f"caresp_{partition}{secrets.token_hex(16)}"


def new_guid() -> str:
    """A random UUID in its usual form."""
    return str(uuid.uuid4())


def new_request_id() -> str:
    """32 hexadecimal digits, as the container library makes them."""
    return uuid.uuid4().hex
