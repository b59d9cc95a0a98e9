"""What a task may be made of (contract section 4.14). Each check raises RefusedError, `invalid_request`."""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from cupola_agent import jsons
from cupola_agent.stores.base import RefusedError
from cupola_agent.tasks.base import LeaseRequest

MAX_PAYLOAD_BYTES = 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_SOURCE_BYTES = 4 * 1024
MAX_ATTACHMENT_BYTES = 10 * 1024 * 1024
MAX_ATTACHMENTS = 20
MAX_TAGS = 16
MAX_PAGE = 100

_TEXT_LIMITS = {"agent_name": 128, "session_id": 128, "title": 256, "description": 1024, "suspension_reason": 256}
_TAG_VALUE_LIMIT = 256
_LEASE_TEXT_LIMIT = 256
_LEASE_SECONDS = range(10, 3601)
_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def refuse(message: str, param: str | None = None) -> NoReturn:
    raise RefusedError(message, param=param)


def check_id(task_id: Any) -> None:
    if not isinstance(task_id, str) or not _TASK_ID.fullmatch(task_id):
        refuse("id must be 1 to 128 characters of A-Z, a-z, 0-9, _ and -", "id")


def check_text(fields: Mapping[str, Any], name: str, *, required: bool = False) -> None:
    value, limit = fields.get(name), _TEXT_LIMITS[name]
    if value is None and not required:
        return
    if not isinstance(value, str) or (required and not value.strip()):
        refuse(f"{name} must be a {'non-empty ' if required else ''}string", name)
    if len(value) > limit:
        refuse(f"{name} may have at most {limit} characters", name)


def check_lease(lease: LeaseRequest | None) -> None:
    if lease is None:
        return
    for name, value in (("lease_owner", lease.owner), ("lease_instance_id", lease.instance_id)):
        if not value.strip() or len(value) > _LEASE_TEXT_LIMIT:
            refuse(f"{name} must have 1 to {_LEASE_TEXT_LIMIT} characters", name)
    if lease.duration_seconds != 0 and lease.duration_seconds not in _LEASE_SECONDS:
        refuse("lease_duration_seconds must be 0 or from 10 to 3600", "lease_duration_seconds")


def check_tags(tags: Any) -> None:
    """Of a patch: null deletes a key."""
    if tags is None:
        return
    if not isinstance(tags, dict) or len(tags) > MAX_TAGS:
        refuse(f"tags must be an object of at most {MAX_TAGS} entries", "tags")
    for key, value in tags.items():
        if not _KEY.fullmatch(key):
            refuse("a tag's key must be 1 to 64 characters of A-Z, a-z, 0-9, _, . and -", "tags")
        if value is not None and (not isinstance(value, str) or len(value) > _TAG_VALUE_LIMIT):
            refuse(f"a tag's value must be a string of at most {_TAG_VALUE_LIMIT} characters", "tags")


def check_payload(payload: Any) -> None:
    check_size(payload, MAX_PAYLOAD_BYTES, "payload")


def check_error(error: Any) -> None:
    if error is None:
        return
    check_size(error, MAX_ERROR_BYTES, "error")
    _check_object(error, "error", "message", "type")


def check_source(source: Any) -> None:
    if source is None:
        return
    check_size(source, MAX_SOURCE_BYTES, "source")
    _check_object(source, "source", "type")


def check_attachments(attachments: Any) -> None:
    """Of a patch: null deletes a key."""
    if attachments is None:
        return
    if not isinstance(attachments, dict) or len(attachments) > MAX_ATTACHMENTS:
        refuse(f"attachments must be an object of at most {MAX_ATTACHMENTS} entries", "attachments")
    for key, value in attachments.items():
        if not _KEY.fullmatch(key):
            refuse("an attachment's key must be 1 to 64 characters of A-Z, a-z, 0-9, _, . and -", "attachments")
        check_size(value, MAX_ATTACHMENT_BYTES, "attachments")


def check_size(value: Any, limit: int, name: str) -> None:
    try:
        size = len(jsons.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        refuse(f"{name} is not JSON: {error}", name)
    if size > limit:
        refuse(f"{name} may have at most {limit} bytes", name)


def check_page(limit: int) -> int:
    if limit <= 0:
        refuse("limit must be greater than 0", "limit")
    return min(limit, MAX_PAGE)


def _check_object(value: Any, name: str, *required: str) -> None:
    if not isinstance(value, dict):
        refuse(f"{name} must be an object", name)
    for key in required:
        text = value.get(key)
        if not isinstance(text, str) or not text.strip():
            refuse(f"{name}.{key} must be a non-empty string", f"{name}.{key}")
