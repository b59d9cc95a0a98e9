"""Random bytes for identifiers, taken from the kernel many at a time: a system call for each would be a third of the
cost of a short answer's ids. They are as good as `os.urandom`, and a child process starts with none of its parent's.
"""

import os

_BLOCK = 4096

_block = b""
_used = 0


def random_bytes(count: int) -> bytes:
    """`count` bytes, at most 64."""
    global _block, _used
    start = _used
    end = start + count
    if end > len(_block):
        _block = os.urandom(_BLOCK)
        start, end = 0, count
    _used = end
    return _block[start:end]


def _forget() -> None:
    global _block, _used
    _block, _used = b"", 0


os.register_at_fork(after_in_child=_forget)
