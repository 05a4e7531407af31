"""HTTP/2 frames (RFC 9113, section 4.1): splitting what arrived, and the few frames we write. Handles hostile bytes.

The splitter is fed decrypted bytes as they come and looks at nine header bytes a frame. The payload of DATA is handed
on in pieces, as slices of what was fed and without waiting for the rest of the frame; any other frame is small by rule
and collected whole. So a frame of any size costs no memory of its own, and a bulk flow is never copied here.
"""

import struct
from typing import NamedTuple

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0x0, 0x1, 0x2, 0x3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR = 0x5, 0x6, 0x7, 0x8, 0x9, 0xA
ENHANCE_YOUR_CALM = 0xB

HEADER_SIZE = 9
MAX_FRAME = 2**20
"""The largest DATA frame we allow the peer; far above what pays, so that the peer chooses."""
MAX_CONTROL = 2**14
"""The largest frame other than DATA: nothing we understand needs more, and it bounds what is collected."""

_HEADER = struct.Struct("!HBBBL")
_WORD = struct.Struct("!L")


class ProtocolError(Exception):
    """The peer broke HTTP/2; `code` goes into GOAWAY and the tunnel ends."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Frame(NamedTuple):
    """A frame, or a piece of a DATA frame.

    `payload` is without padding. `credit` is what a DATA piece takes from the flow-control windows, padding included.
    END_STREAM stands in `flags` of the last piece only. `raw` is the whole frame for SETTINGS and PING, else empty.
    """

    type: int
    flags: int
    stream: int
    payload: memoryview | bytes
    credit: int = 0
    raw: bytes = b""


class Splitter:
    """Turns a byte stream into frames."""

    __slots__ = ("_flags", "_head", "_left", "_pad", "_pad_known", "_stream", "_whole")

    def __init__(self) -> None:
        self._head = bytearray()  # an incomplete frame header
        self._whole: bytearray | None = None  # an incomplete frame other than DATA, header included
        self._left = 0  # what is missing of the payload
        self._pad = 0  # how much of what is left is padding
        self._pad_known = True
        self._flags = 0
        self._stream = 0

    @property
    def within(self) -> bool:
        """Whether the last bytes fed left a frame incomplete."""
        return bool(self._left or self._head or self._whole is not None)

    def feed(self, data: memoryview) -> list[Frame]:
        """The frames and DATA pieces in `data`; their payloads are slices of it, valid until it is overwritten."""
        frames: list[Frame] = []
        at, end = 0, len(data)
        while at < end or (self._whole is not None and not self._left):
            if self._whole is not None:
                n = min(self._left, end - at)
                self._whole += data[at : at + n]
                self._left -= n
                at += n
                if not self._left:
                    frames.append(self._complete())
                continue
            if self._left:
                at = self._piece(data, at, frames)
                continue
            if not self._head and end - at >= HEADER_SIZE:
                self._begin(data[at : at + HEADER_SIZE], frames)
                at += HEADER_SIZE
                continue
            n = min(HEADER_SIZE - len(self._head), end - at)
            self._head += data[at : at + n]
            at += n
            if len(self._head) == HEADER_SIZE:
                head, self._head = self._head, bytearray()
                self._begin(head, frames)
        return frames

    def _begin(self, head: memoryview | bytearray, frames: list[Frame]) -> None:
        length, kind, flags, stream = parse_header(head, 0)
        if kind != DATA:
            if length > MAX_CONTROL:
                raise ProtocolError(FRAME_SIZE_ERROR, f"a frame of type {kind} with {length} bytes")
            self._whole, self._left = bytearray(head), length
            return
        if length > MAX_FRAME:
            raise ProtocolError(FRAME_SIZE_ERROR, f"a DATA frame of {length} bytes")
        self._left, self._flags, self._stream = length, flags, stream
        self._pad, self._pad_known = 0, not flags & PADDED
        if length == 0:
            if flags & PADDED:
                raise ProtocolError(FRAME_SIZE_ERROR, "padding without room for it")
            frames.append(Frame(DATA, flags & END_STREAM, stream, b""))

    def _piece(self, data: memoryview, at: int, frames: list[Frame]) -> int:
        n = min(self._left, len(data) - at)
        piece = data[at : at + n]
        self._left -= n
        if not self._pad_known:
            self._pad, self._pad_known = piece[0], True
            piece = piece[1:]
            if self._pad > self._left + len(piece):
                raise ProtocolError(PROTOCOL_ERROR, "padding longer than its frame")
        if self._pad > self._left:
            piece = piece[: len(piece) - (self._pad - self._left)]
            self._pad = self._left
        last = self._flags & END_STREAM if not self._left else 0
        frames.append(Frame(DATA, last, self._stream, piece, n))
        return at + n

    def _complete(self) -> Frame:
        raw = bytes(self._whole or b"")
        self._whole = None
        _, kind, flags, stream = parse_header(raw, 0)
        payload = raw[HEADER_SIZE:]
        if kind == HEADERS and flags & (PADDED | WITH_PRIORITY):
            payload = _bare(payload, flags)
        return Frame(kind, flags, stream, payload, 0, raw if kind in (SETTINGS, PING) else b"")


def _bare(payload: bytes, flags: int) -> bytes:
    """The header block fragment of a HEADERS frame with padding or priority."""
    pad = 0
    if flags & PADDED:
        if not payload:
            raise ProtocolError(FRAME_SIZE_ERROR, "padding without room for it")
        pad, payload = payload[0], payload[1:]
    if flags & WITH_PRIORITY:
        if len(payload) < 5:
            raise ProtocolError(FRAME_SIZE_ERROR, "priority without room for it")
        payload = payload[5:]
    if pad > len(payload):
        raise ProtocolError(PROTOCOL_ERROR, "padding longer than its frame")
    return payload[: len(payload) - pad]


unpack_header = _HEADER.unpack_from
"""(data, at): (length >> 8, length & 0xFF, type, flags, stream and one reserved bit) of the frame that begins there."""


def parse_header(data: memoryview | bytearray | bytes, at: int) -> tuple[int, int, int, int]:
    """(length, type, flags, stream) of the frame that begins at `at`."""
    high, low, kind, flags, stream = unpack_header(data, at)
    return high << 8 | low, kind, flags, stream & 0x7FFFFFFF


def header(kind: int, flags: int, stream: int, length: int) -> bytes:
    """The nine bytes before a payload of `length`."""
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)


header_into = _HEADER.pack_into
"""(buffer, at, length >> 8, length & 0xFF, kind, flags, stream): the same, written in place in front of a payload that
is already there."""


def window_update(stream: int, credit: int) -> bytes:
    """Give the peer `credit` more bytes on `stream` (0: the connection)."""
    return header(WINDOW_UPDATE, 0, stream, 4) + _WORD.pack(credit)


def rst_stream(stream: int, code: int) -> bytes:
    """End `stream` at once, both ways."""
    return header(RST_STREAM, 0, stream, 4) + _WORD.pack(code)


def goaway(last_stream: int, code: int, why: str = "") -> bytes:
    """Tell the peer to open no further streams here; those above `last_stream` were not looked at."""
    text = why.encode()[:256]
    return header(GOAWAY, 0, 0, 8 + len(text)) + struct.pack("!LL", last_stream, code) + text


def word(payload: bytes | memoryview, at: int = 0) -> int:
    """The 32-bit number at `at`; ProtocolError if the payload is too short for it."""
    if len(payload) < at + 4:
        raise ProtocolError(FRAME_SIZE_ERROR, f"a payload of {len(payload)} bytes where {at + 4} belong")
    number: int = _WORD.unpack_from(payload, at)[0]
    return number
