"""Names of headers and the target of a request, as an application is to see them."""

import httptools

NAMES: dict[bytes, str] = {}
"""Names that were seen before, in lower case; filled by `header_name`."""
_MAX_NAMES = 1024


def header_name(name: bytes) -> str:
    text = name.decode("latin-1").lower()
    if len(NAMES) < _MAX_NAMES:
        NAMES[name] = text
    return text


def split_target(target: bytes) -> tuple[str, bytes, bytes] | None:
    """Path decoded, path raw, query. None when it is no target of a request."""
    if target[:1] != b"/":
        if target == b"*":
            return "*", target, b""
        try:
            url = httptools.parse_url(target)
        except httptools.HttpParserInvalidURLError:
            return None
        target = (url.path or b"/") + (b"?" + url.query if url.query else b"")
    raw, _, query = target.partition(b"?")
    if b"#" in target:
        return None
    if b"%" not in raw:
        return raw.decode("latin-1"), raw, query
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(raw).decode("utf-8", "replace"), raw, query
