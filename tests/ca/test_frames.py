import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.contract import (
    CENTRE_FRAMES,
    MAX_BODY,
    NODE_FRAMES,
    Answer,
    Ask,
    ContractError,
    Delta,
    Hello,
    LocalMatch,
    Private,
    Report,
    ResourceName,
    Roots,
)
from ca.frames import FramesEnded, centre_side, encode, node_side
from ca.resources.workload import Match

FROM_NODE: list[NODE_FRAMES] = [
    Hello("1.0", "0.1.0", 7, "i"),
    Report(3, ["a", "ü"]),
    Answer(1, msgspec.Raw(b'{"x":[1]}')),
    Answer(2, error="no"),
]
FROM_CENTRE: list[CENTRE_FRAMES] = [
    Roots("pem"),
    Private(1, [LocalMatch("shop", "web", Match(uid=0))]),
    Delta(2, "i", [msgspec.Raw(b'{"kind":"Node"}')], [ResourceName("Node", "a")], reset=True, more=True),
    Ask(1, "connections", msgspec.Raw(b"null")),
]


class Pieces(trio.abc.ReceiveStream):
    """Hands out bytes in pieces of a given size, then the end."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data = data
        self._size = size

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        piece, self._data = self._data[: self._size], self._data[self._size :]
        return piece

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def stream(data: bytes, size: int = 2**16) -> trio.StapledStream:
    sent, _ = trio.testing.memory_stream_one_way_pair()
    return trio.StapledStream(sent, Pieces(data, size))  # type: ignore[type-var]


@pytest.mark.parametrize("size", [1, 3, 2**16])
async def test_both_ways_whole_and_in_pieces(size: int) -> None:
    frames = centre_side(stream(b"".join(map(encode, FROM_NODE)), size))
    assert [await frames.receive() for _ in FROM_NODE] == FROM_NODE
    with pytest.raises(FramesEnded, match=r"ended the session$"):
        await frames.receive()
    back = node_side(stream(b"".join(map(encode, FROM_CENTRE)), size))
    assert [await back.receive() for _ in FROM_CENTRE] == FROM_CENTRE


async def test_what_came_with_the_upgrade_is_read_first() -> None:
    whole = encode(FROM_NODE[0])
    assert await centre_side(stream(whole[5:]), whole[:5]).receive() == FROM_NODE[0]


async def test_unknown_frames_and_fields_are_skipped() -> None:
    news = [b'{"frame":"gossip","x":[{}]}', b'{"frame":"report","active":5,"newer":{"a":[1]}}']
    data = b"".join(len(n).to_bytes(4, "big") + n for n in news)
    assert await centre_side(stream(data)).receive() == Report(5)


async def test_a_cut_is_not_an_end() -> None:
    with pytest.raises(FramesEnded, match="in the middle of a frame"):
        await centre_side(stream(encode(FROM_NODE[0])[:-1])).receive()
    with pytest.raises(FramesEnded, match="in the middle of a frame"):
        await centre_side(stream(b"\0\0")).receive()


async def test_no_frame_is_larger_than_the_limit() -> None:
    with pytest.raises(ContractError, match="more than"):
        await centre_side(stream((MAX_BODY + 1).to_bytes(4, "big"))).receive()
    with pytest.raises(ContractError, match="more than"):
        encode(Report(1, ["x" * MAX_BODY]))


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"frame":1}', b'{"frame":"hello"}', b"[" * 100_000, b"\xff"])
async def test_what_is_no_frame(body: bytes) -> None:
    with pytest.raises(ContractError, match="no frame"):
        await centre_side(stream(len(body).to_bytes(4, "big") + body)).receive()


@settings(max_examples=200)
@given(st.binary(max_size=300), st.integers(1, 20), st.booleans())
def test_arbitrary_bytes_end_in_one_of_two_errors(data: bytes, size: int, framed: bool) -> None:
    async def read() -> None:
        raw = len(data).to_bytes(4, "big") + data if framed else data
        frames = centre_side(stream(raw, size))
        while True:
            await frames.receive()

    with pytest.raises((FramesEnded, ContractError)):
        trio.run(read)
