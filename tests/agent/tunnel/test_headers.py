"""Header blocks, against hpack's own encoder and decoder as the independent reference."""

import pytest
from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple
from hypothesis import example, given
from hypothesis import strategies as st

from agent.tunnel import headers
from agent.tunnel.frames import ProtocolError
from agent.tunnel.headers import BlockReader, BlockWriter, Connect, HeaderError

ascii_text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=126)
asks = st.builds(Connect, ascii_text.filter(bool), ascii_text, ascii_text, ascii_text)

FORWARDED = b"\x00\x09forwarded"


def settled(cache: dict[bytes, Connect] | None = None) -> BlockReader:
    """A reader whose peer has acknowledged the empty table and begun to keep to it."""
    reader = BlockReader({} if cache is None else cache)
    reader.settle()
    assert reader.status(b"\x20\x88") == 200
    return reader


def literal(name: bytes, value: bytes, *, first: int = 0x10) -> bytes:
    return bytes((first, len(name))) + name + bytes((len(value),)) + value


def reference(decoder: Decoder, block: bytes) -> Connect | str:
    """What a decoder without a cache makes of a request."""
    try:
        fields = [(str(n), str(v)) for n, v in decoder.decode(block)]
    except (HPACKError, UnicodeDecodeError):
        return "tunnel lost"
    pseudo = [f for f in fields if f[0].startswith(":")]
    if fields[: len(pseudo)] != pseudo or sorted(n for n, _ in pseudo) != [":authority", ":method"]:
        return "no CONNECT"
    if dict(pseudo)[":method"] != "CONNECT" or not dict(pseudo)[":authority"]:
        return "no CONNECT"
    plain = dict(reversed(fields))  # the first of several stands
    return Connect(
        plain[":authority"], plain.get("baggage", ""), plain.get("forwarded", ""), plain.get("traceparent", "")
    )


def outcome(reader: BlockReader, block: bytes) -> Connect | str:
    try:
        return reader.connect(block)
    except HeaderError:
        return "no CONNECT"
    except ProtocolError:
        return "tunnel lost"


@given(st.lists(asks, min_size=1, max_size=5))
def test_what_we_write_reads_back_with_and_without_the_cache(sent):
    written, read = {}, {}
    for _connection in range(2):
        writer, plain, reader = BlockWriter(written), Decoder(), BlockReader(read)
        for i, ask in enumerate([*sent, *sent]):
            if i == 1:
                reader.settle()
            block = writer.connect(ask)
            assert reference(plain, block) == ask
            assert reader.connect(block) == ask
    assert len(written) == len({(a.authority, a.baggage) for a in sent})


@given(st.text(max_size=300))
def test_long_or_foreign_text_is_cut_and_replaced_but_never_breaks_the_block(text):
    block = BlockWriter({}).connect(Connect("10.0.0.1:80", "", text, text))
    seen = reference(Decoder(), block)
    expected = text.encode("ascii", "replace")[:126].decode()
    assert seen == Connect("10.0.0.1:80", "", expected, expected)


@given(st.integers(100, 599))
def test_status_round_trip(status):
    writer, reader = BlockWriter({}), BlockReader({})
    for _ in range(3):
        block = writer.status(status)
        assert reader.status(block) == status
    assert dict(Decoder().decode(block)) == {":status": str(status)}


@given(st.integers(100, 599), st.booleans())
def test_status_from_another_encoder(status, huffman):
    block = Encoder().encode([(":status", str(status)), ("date", "Thu, 01 Jan 1970 00:00:00 GMT")], huffman=huffman)
    assert BlockReader({}).status(block) == status


@given(st.binary(max_size=60))
def test_hostile_answers(block):
    try:
        assert 0 <= BlockReader({}).status(block) <= 999
    except ProtocolError:
        pass


# ---- the cache gives no other answer than the plain decoder would

CONNECT = literal(b":method", b"CONNECT", first=0)
parts = st.one_of(
    st.just(CONNECT),
    st.just(literal(b":authority", b"10.0.0.1:80")),
    st.just(literal(b":authority", b"10.0.0.1:80", first=0x40)),  # into the table, if there is one
    st.just(b"\x21\x0b10.0.0.1:80"),  # a size update too large, after an emptied table
    st.just(b"\x20"),
    st.just(b"\xbe"),  # the newest entry of the dynamic table
    st.just(b"\x0f\x2f\x03xyz"),  # the value of which is indexed by the dynamic table
    st.builds(lambda v: FORWARDED + bytes((len(v),)) + v, st.binary(max_size=30)),
    st.builds(lambda v: b"\x00\x0btraceparent" + bytes((len(v),)) + v, st.binary(max_size=30)),
    st.builds(literal, st.sampled_from([b"forwarded", b"traceparent", b"baggage", b"x", b":authority"]), st.binary()),
    # Our literals inside another: whole, cut short, and going on after its end.
    st.builds(
        lambda v, over: bytes((0x01, max(0, len(v) - over))) + v,
        st.builds(lambda v: FORWARDED + bytes((len(v),)) + v, st.binary(max_size=10)),
        st.integers(0, 5),
    ),
    st.binary(max_size=8),
)
blocks = st.lists(parts, max_size=6).map(b"".join)
hostile = literal(b":method", b"CONNECT") + b"\x01\x10ab" + FORWARDED + b"\x02"


@given(st.lists(st.tuples(st.integers(0, 2), blocks), max_size=12))
@example([(0, hostile + b"xy"), (0, hostile[:-1] + b"\x05hello")])
@example([(0, hostile + b"\x84"), (1, hostile + b"\x84")])
@example([(0, CONNECT + b"\x01\x0210" + FORWARDED + b"\x00"), (1, CONNECT + b"\x01\x0210" + FORWARDED + b"\x01x")])
def test_connections_that_share_a_cache(sent):
    """Three settled connections; a lost one is replaced, as its tunnel would be."""
    cache: dict[bytes, Connect] = {}

    def fresh() -> tuple[BlockReader, Decoder]:
        plain = Decoder(max_header_list_size=headers.MAX_LIST)
        plain.max_allowed_table_size = 0
        plain.decode(b"\x20\x88")
        return settled(cache), plain

    ends = [fresh(), fresh(), fresh()]
    for which, block in sent:
        reader, plain = ends[which]
        expected = reference(plain, block)
        assert outcome(reader, block) == expected
        if expected == "tunnel lost":
            ends[which] = fresh()


@given(st.lists(blocks, max_size=5), st.lists(blocks, max_size=5))
@example([literal(b":authority", b"10.0.0.1:80", first=0x40)], [CONNECT + b"\xbe" + FORWARDED + b"\x00"])
def test_a_table_filled_before_the_acknowledgement(before, after):
    cache: dict[bytes, Connect] = {}
    warm = settled(cache)
    for block in after:
        outcome(warm, block)
        warm = settled(cache)
    reader, plain = BlockReader(cache), Decoder(max_header_list_size=headers.MAX_LIST)
    for i, block in enumerate([*before, None, *after]):
        if block is None:
            reader.settle()
            plain.max_allowed_table_size = 0
            continue
        expected = reference(plain, block)
        assert outcome(reader, block) == expected, i
        if expected == "tunnel lost":
            return


def test_the_same_part_behind_other_tails_is_decoded_once():
    cache: dict[bytes, Connect] = {}
    reader, writer = settled(cache), BlockWriter({})
    writer.status(200)
    for i in range(50):
        ask = Connect("10.0.0.1:80", "service.name=web", f'for="10.0.0.2:{i}"', f"00-{i:032x}-00f067aa0ba902b7-01")
        assert reader.connect(writer.connect(ask)) == ask
    assert len(cache) == 1


def test_caches_are_bounded_in_entries_and_bytes():
    written, read = {}, {}
    writer, reader = BlockWriter(written), settled(read)
    writer.status(200)
    for i in range(2 * headers._KNOWN_MAX + 10):
        reader.connect(writer.connect(Connect(f"10.0.{i // 256}.{i % 256}:80", "", "x")))
        assert len(written) <= headers._KNOWN_MAX
        assert len(read) <= headers._KNOWN_MAX
    read.clear()
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.table_size_changes = []
    for length in (10, 900, 1200, 9000):
        fields = [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), ("baggage", "b" * length)]
        block = encoder.encode([NeverIndexedHeaderTuple(*f) for f in fields], huffman=False) + FORWARDED + b"\x01x"
        assert reader.connect(block) == Connect("10.0.0.1:80", "b" * length, "x")
    assert sorted(map(len, read)) == sorted(k for k in map(len, read) if k <= 1024)
    assert len(read) == 2


@pytest.mark.parametrize("size", [headers.MAX_LIST + 1, 2 * headers.MAX_LIST])
def test_a_list_that_is_too_large(size):
    block = Encoder().encode([(":method", "CONNECT"), (":authority", "10.0.0.1:80"), ("x", "y" * size)])
    with pytest.raises(ProtocolError):
        BlockReader({}).connect(block)


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "GET"), (":authority", "10.0.0.1:80")],
        [(":method", "CONNECT")],
        [(":method", "CONNECT"), (":authority", "")],
        [(":method", "CONNECT"), (":authority", "1" * 256)],
        [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), (":" + "x" * 9000, "/")],
        [(":method", "CONNECT"), ("x", "y"), (":" + "x" * 9000, "/")],
        [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), (":path", "/")],
        [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), (":scheme", "https")],
        [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), (":authority", "10.0.0.1:80")],
        [(":method", "CONNECT"), ("x", "y"), (":authority", "10.0.0.1:80")],
        [(":method", "CONNECT"), (":authority", "10.0.0.1:80"), (":protocol", "websocket")],
        [],
    ],
)
def test_requests_that_cannot_be_served(fields):
    with pytest.raises(HeaderError) as caught:
        BlockReader({}).connect(Encoder().encode(fields))
    assert len(str(caught.value)) < 200  # it is logged
