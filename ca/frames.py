"""Frames of a session on any trio stream: four bytes of length, big-endian, and that much JSON.

Both sides use it; what arrives is hostile until it is decoded. Memory per stream: one frame, at most MAX_BODY.
"""

from typing import Generic, TypeVar

import msgspec
import trio

from ca.contract import CENTRE_FRAMES, MAX_BODY, NODE_FRAMES, ContractError

F = TypeVar("F")

_READ = 2**16
_encoder = msgspec.json.Encoder()
_from_node: msgspec.json.Decoder[NODE_FRAMES] = msgspec.json.Decoder(NODE_FRAMES)
_from_centre: msgspec.json.Decoder[CENTRE_FRAMES] = msgspec.json.Decoder(CENTRE_FRAMES)


class _Tag(msgspec.Struct):
    frame: str


_tag = msgspec.json.Decoder(_Tag)


class FramesEnded(Exception):
    """The other side ended the session between two frames, or the connection broke."""


def encode(frame: NODE_FRAMES | CENTRE_FRAMES) -> bytes:
    """A frame as it goes over the wire. ContractError if it is larger than the other side would take."""
    body = _encoder.encode(frame)
    if len(body) > MAX_BODY:
        raise ContractError(f"a frame of {len(body)} bytes is more than the {MAX_BODY} that fit")
    return len(body).to_bytes(4, "big") + body


class FrameStream(Generic[F]):
    """Reads frames of one direction and writes those of the other. One reader and one writer at a time; whoever made
    the stream closes it. Cancelling `send` or `receive` in the middle of a frame leaves nothing usable: close it."""

    def __init__(self, stream: trio.abc.Stream, decoder: msgspec.json.Decoder[F], early: bytes = b"") -> None:
        self._stream = stream
        self._decoder = decoder
        self._known = _tags(decoder)
        self._buffer = bytearray(early)

    async def send(self, frame: NODE_FRAMES | CENTRE_FRAMES) -> None:
        """Write one frame."""
        await self.send_encoded(encode(frame))

    async def send_encoded(self, data: bytes) -> None:
        """Write what `encode` gave: the same bytes may go to many."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
            raise FramesEnded(f"the connection broke: {e}") from e

    async def receive(self) -> F:
        """The next frame of a kind we know; others are skipped. FramesEnded at the end, ContractError for what is no
        frame."""
        while True:
            length = int.from_bytes(await self._take(4, at_start=True), "big")
            if length > MAX_BODY:
                raise ContractError(f"a frame of {length} bytes is more than the {MAX_BODY} that fit")
            body = await self._take(length, at_start=False)
            try:
                if _tag.decode(body).frame in self._known:
                    return self._decoder.decode(body)
            except (msgspec.ValidationError, msgspec.DecodeError, RecursionError) as e:
                raise ContractError(f"what arrived is no frame: {e}") from e

    async def _take(self, count: int, *, at_start: bool) -> bytes:
        while len(self._buffer) < count:
            try:
                data = await self._stream.receive_some(_READ)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as e:
                raise FramesEnded(f"the connection broke: {e}") from e
            if not data:
                clean = at_start and not self._buffer
                raise FramesEnded("the other side ended the session" + ("" if clean else " in the middle of a frame"))
            self._buffer += data
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken


def node_side(stream: trio.abc.Stream, early: bytes = b"") -> FrameStream[CENTRE_FRAMES]:
    """The session as the node has it; `early` arrived together with the answer to the upgrade."""
    return FrameStream(stream, _from_centre, early)


def centre_side(stream: trio.abc.Stream, early: bytes = b"") -> FrameStream[NODE_FRAMES]:
    """The session as the centre has it."""
    return FrameStream(stream, _from_node, early)


def _tags(decoder: msgspec.json.Decoder[F]) -> frozenset[str]:
    info = msgspec.inspect.type_info(decoder.type)
    assert isinstance(info, msgspec.inspect.UnionType)
    return frozenset(str(t.tag) for t in info.types if isinstance(t, msgspec.inspect.StructType))
