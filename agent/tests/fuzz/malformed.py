"""HTTP that is none: request lines, heads and chunks as no client sends them, and the shapes that smuggle a request."""

from __future__ import annotations

import random
from collections.abc import Mapping

_BODY = b'{"input":"x"}'
_HEAD = b"POST /responses HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def _get(line: bytes = b"GET /readiness HTTP/1.1", *headers: bytes) -> bytes:
    return b"\r\n".join([line, b"Host: a", *headers, b"", b""])


REFUSED: Mapping[str, bytes] = {
    "no request": b"hello\r\n\r\n",
    "only a method": b"GET\r\n\r\n",
    "no version": _get(b"GET /readiness"),
    "a version of the future": _get(b"GET /readiness HTTP/9.9"),
    "a version that is none": _get(b"GET /readiness HTTP/x.y"),
    "a method with a space": _get(b"G ET /readiness HTTP/1.1"),
    "a method of control characters": _get(b"G\x01T /readiness HTTP/1.1"),
    "a target with a null": _get(b"GET /readi\0ness HTTP/1.1"),
    "bytes of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 64,
    "binary": bytes(range(256)),
    "a header without colon": _get(b"GET /readiness HTTP/1.1", b"nonsense"),
    "a header without name": _get(b"GET /readiness HTTP/1.1", b": value"),
    "a space before the colon": _get(b"GET /readiness HTTP/1.1", b"X-Any : value"),
    "a name with a control character": _get(b"GET /readiness HTTP/1.1", b"X\x01Any: value"),
    "a value with a null": _get(b"GET /readiness HTTP/1.1", b"X-Any: a\0b"),
    "a length that is none": _HEAD + b"Content-Length: many\r\n\r\n" + _BODY,
    "a negative length": _HEAD + b"Content-Length: -1\r\n\r\n" + _BODY,
    "a length with a sign": _HEAD + b"Content-Length: +13\r\n\r\n" + _BODY,
    "a hexadecimal length": _HEAD + b"Content-Length: 0xd\r\n\r\n" + _BODY,
    "an enormous length": _HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + _BODY,
    "two lengths that differ": _HEAD + b"Content-Length: 13\r\nContent-Length: 5\r\n\r\n" + _BODY + _SMUGGLED,
    "a list of lengths": _HEAD + b"Content-Length: 13, 5\r\n\r\n" + _BODY + _SMUGGLED,
    "a length and chunks": _HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    "chunks and a length": _HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    "an encoding nobody knows": _HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    "chunked, but not last": _HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + _SMUGGLED,
    "a chunk size that is none": _CHUNKED + b"xyz\r\nhello\r\n0\r\n\r\n",
    "a negative chunk size": _CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
    "an enormous chunk size": _CHUNKED + b"f" * 40 + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk longer than its size": _CHUNKED + b"2\r\nhello\r\n0\r\n\r\n",
    "a head that is too large": _get(b"GET /readiness HTTP/1.1", b"X-Any: " + b"a" * 2_000_000),
    "too many headers": _get(b"GET /readiness HTTP/1.1", *(b"X-%d: %s" % (i, b"a" * 200) for i in range(20_000))),
    "a target that is too long": _get(b"GET /" + b"a" * 2_000_000 + b" HTTP/1.1"),
    "a method that is too long": _get(b"A" * 1_000_000 + b" / HTTP/1.1"),
}
"""Each must be answered by one refusal, or by nothing but the end of the connection."""

CUT_OFF: Mapping[str, bytes] = {
    "nothing": b"",
    "half a request line": b"GET /readi",
    "half a head": b"GET /readiness HTTP/1.1\r\nHost: a\r\nX-An",
    "half a body": _HEAD + b"Content-Length: 100\r\n\r\n" + _BODY,
    "no body": _HEAD + b"Content-Length: 13\r\n\r\n",
    "half a chunk size": _CHUNKED + b"d",
    "half a chunk": _CHUNKED + b"d\r\n" + _BODY[:5],
    "no last chunk": _CHUNKED + b"d\r\n" + _BODY + b"\r\n",
    "no end of the last chunk": _CHUNKED + b"d\r\n" + _BODY + b"\r\n0\r\n",
}
"""Each ends in the middle: nothing may be answered but a 4xx."""

_SEEDS = (
    _get(),
    _HEAD + b"Content-Length: 13\r\n\r\n" + _BODY,
    _CHUNKED + b"d\r\n" + _BODY + b"\r\n0\r\n\r\n",
    _get(b"GET /responses HTTP/1.1", b"Upgrade: websocket", b"Connection: Upgrade",
         b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    _get(b"OPTIONS * HTTP/1.1"),
    _get(b"GET http://a/readiness HTTP/1.1"),
    _get(b"CONNECT a:1 HTTP/1.1"),
    _get(b"GET /readiness HTTP/1.0"),
    _get(b"PRI * HTTP/2.0"),
    _get(b"GET /readiness HTTP/1.1", b"Expect: 100-continue"),
    *REFUSED.values(),
)  # fmt: skip
_PIECES = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"%", b"%00", b"..", b"/", b"?", b"#", b"HTTP/1.1", b"\xff\xfe",
    b"chunked", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"Connection: close\r\n",
)  # fmt: skip


def mutated(choose: random.Random) -> bytes:
    """One of the requests above with a few bytes changed, moved, doubled or lost."""
    data = bytearray(choose.choice(_SEEDS)[:20_000])
    for _ in range(choose.randint(1, 4)):
        place = choose.randrange(len(data) + 1)
        match choose.randrange(5):
            case 0:
                data[place : place + 1] = bytes([choose.randrange(256)])
            case 1:
                data[place:place] = choose.choice(_PIECES)
            case 2:
                del data[place : place + choose.randint(1, 20)]
            case 3:
                data[place:place] = data[place : place + choose.randint(1, 40)]
            case _:
                data += choose.choice(_SEEDS)[:2000]
    return bytes(data)
