"""How the node answers: with a result, or with what the server is told of an error."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from cupola.domain.errors import CupolaError
from cupola.domain.ids import new_guid
from cupola.node import messages as wire
from cupola.sandbox.base import SandboxError

logger = logging.getLogger(__name__)


def encode_answer(codec: wire.Codec[Any], number: int, result: object) -> bytes:
    """An answer whose result is encoded by itself."""
    return codec.encode(wire.Answer(number, msgspec.Raw(codec.encode(result))))


def describe_failure(number: int, error: Exception) -> wire.Failed:
    """What the server is told of an error. One that nobody expected goes to the log."""
    if isinstance(error, SandboxError):
        return wire.Failed(number, 0, "sandbox", str(error))
    if isinstance(error, CupolaError):
        return wire.Failed(number, error.status, error.code, error.message, error.param)
    reference = new_guid()
    logger.error("a request of the server failed unexpectedly, reference %s", reference, exc_info=error)
    text = f"An unexpected error happened; the server's log has it under the reference {reference}."
    return wire.Failed(number, 500, "internal_error", text)
