"""JSON as it goes over the wire: compact, UTF-8."""

import json
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()
_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def encode(value: Any) -> bytes:
    """Raises TypeError or ValueError when the value is not JSON; NaN and infinity become null, bytes base64."""
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:
        # Half of a surrogate pair has no UTF-8, but JSON can escape it.
        return _ascii.encode(value).encode()


def decode(body: bytes) -> Any:
    """Raises ValueError, with the parser's text, when the body is not JSON."""
    try:
        return _decoder.decode(body)
    except RecursionError:
        raise ValueError("Too deeply nested") from None
    except ValueError:
        if b"\\ud" not in body and b"\\uD" not in body:
            raise
    # Half of a surrogate pair, which JavaScript may escape, is more than the fast parser takes.
    try:
        return json.loads(body.decode(), parse_constant=_refuse)
    except RecursionError:
        raise ValueError("Too deeply nested") from None


def _refuse(name: str) -> None:
    raise ValueError(f"not a JSON number: {name}")
