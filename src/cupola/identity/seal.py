"""Texts that only the platform can have made, so that what they say need not be stored.

A sealed text is not encrypted: whoever holds it can read it. It is good for the purpose that it was made for alone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from pathlib import Path

from cupola.identity.secret import new_secret, write_private

_MAC = 16
"""Bytes. Nobody can try 2^128 of them."""
_LONGEST = 4096


class Seal:
    """Seals and opens with one key of the installation."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, purpose: str, content: bytes) -> str:
        """Letters, digits, hyphens and underscores."""
        return _text(self.digest(purpose, content)[:_MAC] + content)

    def open(self, purpose: str, text: str) -> bytes | None:
        """The content of a text that was sealed here for this purpose; None for any other."""
        if len(text) > _LONGEST or not text.isascii():
            return None
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True)
        except binascii.Error:
            return None
        mac, content = sealed[:_MAC], sealed[_MAC:]
        genuine = hmac.compare_digest(mac, self.digest(purpose, content)[:_MAC])
        # Some other texts decode to the same bytes; they were not made here.
        return content if genuine and _text(sealed) == text else None

    def digest(self, purpose: str, content: bytes) -> bytes:
        """32 bytes that only the platform can compute."""
        return hmac.digest(self._key, purpose.encode() + b"\0" + content, hashlib.sha256)


def _text(sealed: bytes) -> str:
    return base64.urlsafe_b64encode(sealed).rstrip(b"=").decode()


def load_or_create_seal(path: Path) -> Seal:
    """The seal whose key is in a file that only the platform's user may read; made at the first call."""
    if not path.exists():
        write_private(path, new_secret())
    return Seal(path.read_bytes())
