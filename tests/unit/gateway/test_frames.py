from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from cupola.gateway.frames import Frames, close_frame


def frame(opcode: int, size: int, *, masked: bool = False) -> bytes:
    flag = 0x80 if masked else 0
    if size < 126:
        length = bytes((flag | size,))
    elif size < 65536:
        length = bytes((flag | 126,)) + struct.pack(">H", size)
    else:
        length = bytes((flag | 127,)) + struct.pack(">Q", size)
    return bytes((0x80 | opcode,)) + length + (b"mask" if masked else b"") + b"\x88" * size


frames = st.builds(frame, st.integers(0, 7), st.sampled_from([0, 1, 125, 126, 127, 65535, 65536]), masked=st.booleans())


@given(st.lists(frames, min_size=1, max_size=4), st.lists(st.integers(1, 300), min_size=1))
def test_the_ends_of_frames_are_found_however_the_bytes_come(sent: list[bytes], sizes: list[int]) -> None:
    data = b"".join(sent)
    ends = {sum(map(len, sent[:count])) for count in range(len(sent) + 1)}
    followed, at, turn = Frames(), 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)] * (1 if turn < 50 else 1000)
        followed.feed(data[at : at + size])
        at, turn = min(at + size, len(data)), turn + 1
        assert followed.between is (at in ends)
    assert not followed.closed


def test_a_close_frame_is_noticed() -> None:
    followed = Frames()
    followed.feed(frame(1, 300) + close_frame(1011, "over")[:1])
    assert (followed.between, followed.closed) == (False, False)
    followed.feed(close_frame(1011, "over")[1:])
    assert (followed.between, followed.closed) == (True, True)
