"""What a task may be made of (container contract, section 4.14). Each check raises CupolaError (400, `invalid_request`)."""

from __future__ import annotations

import re
from typing import Any

from cupola.domain.errors import invalid_request
from cupola.domain.service_limits import check_key, check_tags, check_text, encoded

Json = dict[str, Any]

STATUSES = ("pending", "in_progress", "suspended", "completed")
PAYLOAD_BYTES = 1024 * 1024
ERROR_BYTES = 64 * 1024
SOURCE_BYTES = 4 * 1024
ATTACHMENT_BYTES = 10 * 1024 * 1024
ATTACHMENTS = 20

_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_MUTABLE = frozenset({"status", "payload", "tags", "attachments", "error", "suspension_reason"})
_FIXED = ("id", "agent_name", "session_id", "title", "description", "source")


def check_new(fields: Json) -> None:
    """The fields of a task that is to be created, but for its status."""
    task_id = fields.get("id")
    if task_id is not None and (not isinstance(task_id, str) or not _ID.fullmatch(task_id)):
        raise invalid_request("id: expected 1 to 128 letters, digits, hyphens or underscores.", "id")
    check_text(fields.get("agent_name"), "agent_name", 128, least=1)
    check_text(fields.get("session_id"), "session_id", 128, least=1)
    check_text(fields.get("title"), "title", 256)
    check_text(fields.get("description"), "description", 1024)
    check_tags(fields.get("tags"), nulls=True)
    check_payload(fields.get("payload"))
    check_attachments(fields.get("attachments"))
    source = fields.get("source")
    if source is not None:
        encoded(source, "source", SOURCE_BYTES)
        _check_texts(source, "source", "type")


def check_patch(patch: Json) -> None:
    """The fields of a merge patch, but for its status and payload."""
    for name in patch:
        if name in _FIXED and patch[name] is not None:
            raise invalid_request(f"{name}: this does not change once a task exists.", name)
        if name not in _FIXED and name not in _MUTABLE:
            raise invalid_request(f"{name[:64]}: a task has no such field.", name[:64])
    check_tags(patch.get("tags"), nulls=True)
    check_attachments(patch.get("attachments"))
    check_text(patch.get("suspension_reason"), "suspension_reason", 256)
    error = patch.get("error")
    if error is not None:
        encoded(error, "error", ERROR_BYTES)
        _check_texts(error, "error", "message", "type")


def check_payload(payload: Any) -> None:
    encoded(payload, "payload", PAYLOAD_BYTES)


def check_attachments(attachments: Any, *, sizes: bool = True) -> None:
    """An object, in a patch with nulls for what is to be removed."""
    if attachments is None:
        return
    if not isinstance(attachments, dict) or len(attachments) > ATTACHMENTS:
        raise invalid_request(f"attachments: expected an object of at most {ATTACHMENTS} entries.", "attachments")
    if sizes:
        for key, value in attachments.items():
            check_key(key, "attachments")
            encoded(value, "attachments", ATTACHMENT_BYTES)


def check_status(value: Any) -> str:
    if isinstance(value, str) and value in STATUSES:
        return value
    hint = " A failure is a completed task with an error." if value == "failed" else ""
    raise invalid_request(f"status: expected one of {', '.join(STATUSES)}.{hint}", "status")


def merged(old: Json | None, new: Json | None) -> Json | None:
    """By key, where null removes; null in place of the whole removes all."""
    if new is None:
        return None
    return {key: value for key, value in {**(old or {}), **new}.items() if value is not None} or None


def _check_texts(value: Any, name: str, *required: str) -> None:
    if not isinstance(value, dict):
        raise invalid_request(f"{name}: expected an object.", name)
    for key in required:
        text = value.get(key)
        if not isinstance(text, str) or not text.strip():
            raise invalid_request(f"{name}.{key}: expected a text.", f"{name}.{key}")
