"""The splitter, against hyperframe as the independent reference."""

import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hyperframe.frame import Frame as Reference
from hypothesis import example, given
from hypothesis import strategies as st

from agent.tunnel import frames
from agent.tunnel.frames import Frame, ProtocolError, Splitter

streams = st.integers(1, 2**31 - 1)
few = st.integers(1, 3)
bodies = st.binary(max_size=40)


class Unknown:
    """A frame of a type nobody knows; the reference cannot write those."""

    def __init__(self, kind: int, stream: int, flags: int, body: bytes) -> None:
        self.stream_id = stream
        self._raw = frames.header(kind, flags, stream, len(body)) + body

    def __repr__(self) -> str:
        return f"Unknown({self._raw!r})"

    def serialize(self) -> bytes:
        return self._raw


def _flagged(frame: Reference, *names: str) -> Reference:
    for name in names:
        frame.flags.add(name)
    return frame


@st.composite
def data_frames(draw) -> Reference:
    frame = DataFrame(draw(few), data=draw(bodies))
    if draw(st.booleans()):
        frame.pad_length = draw(st.integers(0, 255))
        frame.flags.add("PADDED")
    if draw(st.booleans()):
        frame.flags.add("END_STREAM")
    return frame


@st.composite
def headers_frames(draw) -> Reference:
    frame = HeadersFrame(draw(streams), data=draw(bodies))
    for flag in draw(st.sets(st.sampled_from(["END_STREAM", "END_HEADERS", "PADDED", "PRIORITY"]))):
        frame.flags.add(flag)
    if "PADDED" in frame.flags:
        frame.pad_length = draw(st.integers(0, 255))
    if "PRIORITY" in frame.flags:
        frame.depends_on, frame.stream_weight = draw(st.integers(0, 100)), draw(st.integers(0, 255))
    return frame


others = st.one_of(
    st.builds(ContinuationFrame, streams, data=bodies),
    st.builds(PingFrame, st.just(0), opaque_data=st.binary(min_size=8, max_size=8)),
    st.builds(
        SettingsFrame, st.just(0), settings=st.dictionaries(st.integers(1, 9), st.integers(0, 2**32 - 1), max_size=5)
    ),
    st.builds(RstStreamFrame, streams, error_code=st.integers(0, 2**32 - 1)),
    st.builds(WindowUpdateFrame, st.integers(0, 2**31 - 1), window_increment=st.integers(1, 2**31 - 1)),
    st.builds(
        GoAwayFrame,
        st.just(0),
        last_stream_id=st.integers(0, 2**31 - 1),
        error_code=st.integers(0, 2**32 - 1),
        additional_data=bodies,
    ),
    st.builds(PriorityFrame, streams, depends_on=st.integers(0, 9), stream_weight=st.integers(0, 255)),
    st.builds(lambda *facts: Unknown(*facts), st.integers(11, 255), streams, st.integers(0, 255), bodies),
)
any_frames = st.lists(st.one_of(data_frames(), data_frames(), headers_frames(), others), max_size=12)


def _feed(wire: bytes, cuts: list[int]) -> list[Frame]:
    """What a splitter makes of the wire, fed in pieces whose buffers are overwritten afterwards, as the link's are."""
    splitter, found, at = Splitter(), [], 0
    for cut in [*sorted({c % (len(wire) + 1) for c in cuts}), len(wire)]:
        buffer = bytearray(wire[at:cut])
        found += [f._replace(payload=bytes(f.payload)) for f in splitter.feed(memoryview(buffer))]
        buffer[:] = b"\xee" * len(buffer)
        at = cut
    return found


def _joined(found: list[Frame]) -> list[Frame]:
    """The pieces of each DATA frame put together again: END_STREAM and the frame's length must come out the same."""
    whole: list[Frame] = []
    for frame in found:
        last = whole[-1] if whole else None
        if frame.type == last_type(last) == frames.DATA and last and last.stream == frame.stream and not last.flags:
            whole[-1] = last._replace(
                payload=last.payload + frame.payload, credit=last.credit + frame.credit, flags=frame.flags
            )
        else:
            whole.append(frame)
    return whole


def last_type(frame: Frame | None) -> int:
    return -1 if frame is None else frame.type


def _expected(frame: Reference) -> Frame:
    raw = frame.serialize()
    flags = raw[4]
    if isinstance(frame, DataFrame):
        credit = len(raw) - 9
        return Frame(frames.DATA, flags & frames.END_STREAM, frame.stream_id, frame.data, credit)
    if isinstance(frame, HeadersFrame):
        return Frame(frames.HEADERS, flags, frame.stream_id, frame.data)
    keep = raw if isinstance(frame, SettingsFrame | PingFrame) else b""
    return Frame(raw[3], flags, frame.stream_id, raw[9:], 0, keep)


@given(any_frames, st.lists(st.integers(0, 2**20), max_size=20))
@example([DataFrame(1, data=b"")], [])
@example([_flagged(DataFrame(1, data=b"", pad_length=255), "PADDED", "END_STREAM")], [10])
def test_the_same_frames_however_the_bytes_arrive(sent, cuts):
    wire = b"".join(f.serialize() for f in sent)
    expected = _joined([_expected(f) for f in sent])
    assert _joined(_feed(wire, [])) == expected
    assert _joined(_feed(wire, cuts)) == expected


@given(any_frames)
def test_byte_by_byte(sent):
    wire = b"".join(f.serialize() for f in sent)
    assert _joined(_feed(wire, list(range(len(wire))))) == _joined(_feed(wire, []))


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=8))
def test_arbitrary_bytes_give_frames_or_a_protocol_error(wire, cuts):
    def outcome(cuts):
        try:
            return _joined(_feed(wire, cuts))
        except ProtocolError as error:
            return error.code

    whole, cut = outcome([]), outcome(cuts)
    assert type(whole) is type(cut)
    assert whole == cut


@given(st.lists(st.tuples(st.sampled_from(range(12)), st.integers(0, 255), st.binary(max_size=20)), max_size=10))
def test_well_framed_nonsense(parts):
    wire = b"".join(frames.header(kind, flags, 1, len(body)) + body for kind, flags, body in parts)
    try:
        found = _feed(wire, [])
    except ProtocolError:
        return
    assert sum(f.credit for f in found) == sum(len(body) for kind, _, body in parts if kind == frames.DATA)


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (frames.header(frames.DATA, 0, 1, frames.MAX_FRAME + 1), frames.FRAME_SIZE_ERROR),
        (frames.header(frames.HEADERS, 0, 1, frames.MAX_CONTROL + 1), frames.FRAME_SIZE_ERROR),
        (frames.header(0xFA, 0, 1, 2**24 - 1), frames.FRAME_SIZE_ERROR),
        (frames.header(frames.DATA, frames.PADDED, 1, 0), frames.FRAME_SIZE_ERROR),
        (frames.header(frames.DATA, frames.PADDED, 1, 3) + b"\x03ab", frames.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.PADDED, 1, 0), frames.FRAME_SIZE_ERROR),
        (frames.header(frames.HEADERS, frames.PADDED, 1, 3) + b"\x03ab", frames.PROTOCOL_ERROR),
        (frames.header(frames.HEADERS, frames.WITH_PRIORITY, 1, 4) + b"abcd", frames.FRAME_SIZE_ERROR),
    ],
)
def test_refused(wire, code):
    for cuts in ([], list(range(len(wire)))):
        with pytest.raises(ProtocolError) as caught:
            _feed(wire, cuts)
        assert caught.value.code == code


def test_the_largest_frames_pass():
    body = bytes(frames.MAX_FRAME)
    (found,) = _feed(frames.header(frames.DATA, frames.END_STREAM, 5, len(body)) + body, [])
    assert (found.credit, found.flags) == (frames.MAX_FRAME, frames.END_STREAM)
    body = bytes(frames.MAX_CONTROL)
    (found,) = _feed(frames.header(frames.CONTINUATION, 0, 5, len(body)) + body, [])
    assert len(found.payload) == frames.MAX_CONTROL


def test_data_is_handed_on_before_its_frame_is_whole_and_not_copied():
    splitter = Splitter()
    buffer = bytearray(frames.header(frames.DATA, 0, 7, 100) + b"first")
    (piece,) = splitter.feed(memoryview(buffer))
    assert (bytes(piece.payload), piece.credit, piece.flags) == (b"first", 5, 0)
    buffer[-5:] = b"again"
    assert bytes(piece.payload) == b"again"


@given(streams, st.integers(0, 2**31 - 1), st.text(max_size=400))
def test_what_we_write_is_what_the_reference_reads(stream, number, why):
    def read(raw: bytes) -> Reference:
        frame, length = Reference.parse_frame_header(memoryview(raw[:9]))
        assert length == len(raw) - 9
        frame.parse_body(memoryview(raw[9:]))
        return frame

    if number:
        assert read(frames.window_update(stream, number)).window_increment == number
    reset = read(frames.rst_stream(stream, number))
    assert (reset.stream_id, reset.error_code) == (stream, number)
    gone = read(frames.goaway(stream, number, why))
    assert (gone.last_stream_id, gone.error_code) == (stream, number)
    assert gone.additional_data == why.encode()[:256]
    buffer = bytearray(12)
    length = number % 2**24
    frames.header_into(buffer, 3, length >> 8, length & 0xFF, frames.DATA, frames.END_STREAM, stream)
    assert buffer[3:] == frames.header(frames.DATA, frames.END_STREAM, stream, length)
