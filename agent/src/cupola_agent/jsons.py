"""JSON as it goes over the wire: compact, UTF-8, without the NaN and Infinity that Python would allow."""

import json
import math
from typing import Any

_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_ascii = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def encode(value: Any) -> bytes:
    """Raises TypeError or ValueError when the value is not JSON."""
    try:
        return _compact.encode(value).encode()
    except UnicodeEncodeError:
        # Half of a surrogate pair has no UTF-8, but JSON can escape it.
        return _ascii.encode(value).encode()


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"Number out of range: {text}")
    return number


def _refuse(name: str) -> None:
    raise ValueError(f"Not a JSON number: {name}")


_decoder = json.JSONDecoder(parse_float=_finite, parse_constant=_refuse)


def decode(body: bytes) -> Any:
    """Raises ValueError, with the parser's text, when the body is not JSON."""
    try:
        return _decoder.decode(body.decode())
    except RecursionError:
        raise ValueError("Too deeply nested") from None
