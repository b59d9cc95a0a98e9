"""Paths of session files as callers write them, and names as callers see them.

A name on a Linux disk is bytes. One that is not UTF-8 is shown with the private characters U+EF80 to U+EFFF in place of the
bytes 0x80 to 0xFF that do not fit, and read back from them, so it can be downloaded and deleted by what a listing shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from cupola.domain.errors import CupolaError
from cupola.domain.ids import random_text

NAME_LIMIT = 255
"""Bytes of one name: what Linux file systems take."""
PATH_LIMIT = 4096
"""Bytes of a whole path."""
UPLOAD_PREFIX = b".cupola-upload-"
"""How the names of uploads under way begin. They are not listed and cannot be asked for."""

_PRIVATE = 0xEF00
_SURROGATE = 0xDC00
"""Where Python puts the bytes that are not UTF-8 when it decodes with `surrogateescape`."""
_SHOWN_OTHERWISE = re.compile("[\udc80-\udcff\uef80-\uefff]")
_STANDS_FOR_BYTE = re.compile("[\uef80-\uefff]")


def parse_path(text: str) -> tuple[bytes, ...]:
    """The names along a path below the home directory, which is `()`. Raises CupolaError (400)."""
    raw = parse_name(text)
    if b"\0" in raw:
        raise _refused("a path has no NUL character")
    if len(raw) > PATH_LIMIT:
        raise _refused(f"a path has at most {PATH_LIMIT} bytes")
    names = tuple(name for name in raw.split(b"/") if name not in (b"", b"."))
    for name in names:
        if name == b"..":
            raise _refused("`..` is not possible; paths begin at the session's home directory")
        if len(name) > NAME_LIMIT:
            raise _refused(f"a name has at most {NAME_LIMIT} bytes")
        if name.startswith(UPLOAD_PREFIX):
            raise _refused(f"names that begin with {UPLOAD_PREFIX.decode()} are the platform's own")
    return names


def parse_name(text: str) -> bytes:
    """The bytes of a name that was shown."""
    surrogates = _STANDS_FOR_BYTE.sub(lambda found: chr(ord(found[0]) - _PRIVATE + _SURROGATE), text)
    return surrogates.encode(errors="surrogateescape")


def shown_name(name: bytes) -> str:
    """A name as callers see it; `parse_name` gives the bytes back."""

    def as_private(found: re.Match[str]) -> str:
        return "".join(chr(_PRIVATE + byte) for byte in found[0].encode(errors="surrogateescape"))

    return _SHOWN_OTHERWISE.sub(as_private, name.decode(errors="surrogateescape"))


def shown_path(names: Iterable[bytes]) -> str:
    """A path as callers see it: relative to the home directory, which is `.`."""
    return shown_name(b"/".join(names)) or "."


def new_upload_name() -> bytes:
    """A name that nothing else has."""
    return UPLOAD_PREFIX + random_text(24).encode()


def _refused(why: str) -> CupolaError:
    return CupolaError("bad_request", f"path: {why}.", param="path")
