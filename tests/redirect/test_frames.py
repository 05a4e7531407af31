import struct

from hypothesis import given
from hypothesis import strategies as st

from redirect.frames import Frame, attribute, attributes, split

_frames = st.builds(
    Frame,
    kind=st.integers(0, 65535),
    flags=st.integers(0, 65535),
    number=st.integers(0, 2**32 - 1),
    author=st.integers(0, 2**32 - 1),
    payload=st.binary(max_size=50),
)


def _packed(frame: Frame) -> bytes:
    size = 16 + len(frame.payload)
    header = struct.pack("=IHHII", size, frame.kind, frame.flags, frame.number, frame.author)
    return header + frame.payload + bytes(-size % 4)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=70))))
def test_attributes_come_back(rows: list[tuple[int, bytes]]) -> None:
    assert list(attributes(b"".join(attribute(number, payload) for number, payload in rows))) == rows


def test_flags_of_attributes_are_no_part_of_their_number() -> None:
    assert list(attributes(attribute(0x8001, b"nested") + attribute(0x4002, b"big"))) == [(1, b"nested"), (2, b"big")]


@given(st.lists(_frames))
def test_messages_come_back(frames: list[Frame]) -> None:
    assert list(split(b"".join(map(_packed, frames)))) == frames


@given(st.binary(max_size=200))
def test_arbitrary_bytes_end(data: bytes) -> None:
    assert sum(len(payload) for _, payload in attributes(data)) <= len(data)
    assert sum(len(frame.payload) for frame in split(data)) <= len(data)
