"""Header blocks of CONNECT and of its answer (RFC 7541 for the encoding). Handles hostile bytes.

Both ends of a tunnel set SETTINGS_HEADER_TABLE_SIZE to 0, and our encoder never indexes. A block is then a pure
function of its bytes, which buys two things: we send blocks put together from parts encoded once, and a part that we
have decoded before is known by its bytes. Only what changes with each connection (`forwarded`, `traceparent`) is
written and read each time: it stands last, as plain literals.
"""

import msgspec
from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from agent.tunnel.frames import COMPRESSION_ERROR, PROTOCOL_ERROR, ProtocolError

OK = b"\x88"
"""The block of `:status: 200`: entry 8 of the static table."""

MAX_LIST = 2**14
"""Bytes of a decoded header list; ours have a few hundred, and no peer needs more to open a connection."""

_AUTHORITY_MAX = 255
"""Characters of an authority: it is remembered by what is ruled on it, and logged."""
_FORWARDED = b"\x00\x09forwarded"
_TRACEPARENT = b"\x00\x0btraceparent"
_FIRST = b"\x20"  # dynamic table size update to 0, at the start of a connection's first block
_KNOWN_MAX = 4096  # entries of a cache; full, it starts anew
_KNOWN_SIZE, _KNOWN_FIELDS = 1024, 64  # what a cached part may have: with its tail it is far below MAX_LIST


class HeaderError(Exception):
    """The block is sound HPACK, but no CONNECT that we can serve; the stream gets 400."""


class Connect(msgspec.Struct, frozen=True):
    """What a CONNECT asks for. `baggage`, `forwarded` and `traceparent` are as sent, empty when absent."""

    authority: str
    baggage: str = ""
    forwarded: str = ""
    traceparent: str = ""


def _literal(value: str) -> bytes:
    """A string literal without Huffman coding, cut to the 126 bytes that a one-byte length can say."""
    raw = value.encode("ascii", "replace")[:126]
    return bytes((len(raw),)) + raw


class BlockWriter:
    """Makes header blocks for one connection."""

    __slots__ = ("_cache", "_encoder", "_first")

    def __init__(self, cache: dict[tuple[str, str], bytes]) -> None:
        """`cache` may be shared by all connections: blocks do not depend on the connection."""
        self._cache = cache
        self._encoder = Encoder()
        self._encoder.header_table_size = 0
        self._encoder.table_size_changes = []
        self._first = True

    def connect(self, ask: Connect) -> bytes:
        """The block of a CONNECT request."""
        block = self._cache.get((ask.authority, ask.baggage))
        if block is None:
            fields = [(":method", "CONNECT"), (":authority", ask.authority)]
            if ask.baggage:
                fields.append(("baggage", ask.baggage))
            block = self._encode(fields)
            if len(self._cache) >= _KNOWN_MAX:
                self._cache.clear()
            self._cache[ask.authority, ask.baggage] = block
        if ask.forwarded:
            block += _FORWARDED + _literal(ask.forwarded)
        if ask.traceparent:
            block += _TRACEPARENT + _literal(ask.traceparent)
        return self._start(block)

    def status(self, status: int) -> bytes:
        """The block of an answer."""
        return self._start(OK if status == 200 else self._encode([(":status", str(status))]))

    def _start(self, block: bytes) -> bytes:
        if self._first:
            self._first = False
            return _FIRST + block
        return block

    def _encode(self, fields: list[tuple[str, str]]) -> bytes:
        block: bytes = self._encoder.encode([NeverIndexedHeaderTuple(*f) for f in fields])
        return block


class BlockReader:
    """Reads the header blocks of one connection."""

    __slots__ = ("_cache", "_decoder", "_settled", "_stateless")

    def __init__(self, cache: dict[bytes, Connect]) -> None:
        """`cache` may be shared by all connections: it is used only where blocks cannot depend on the connection."""
        self._cache = cache
        self._decoder = Decoder(max_header_list_size=MAX_LIST)
        self._settled = self._stateless = False

    def settle(self) -> None:
        """The peer acknowledged a header table of size 0: from its next block on they are pure functions of their
        bytes. That next one must empty the table, or it is an error; so it is always decoded."""
        self._decoder.max_allowed_table_size = 0
        self._settled = True

    def connect(self, block: bytes) -> Connect:
        """A request. HeaderError: no CONNECT that can be served; ProtocolError: the tunnel is lost."""
        at = block.find(_FORWARDED) if self._stateless else -1
        tail = _literals(block, at) if at > 0 else None
        if tail is None:
            return _connect(self._decode(block))
        known = self._cache.get(block[:at])
        if known is None:
            known = self._learn(block[:at])
            if known is None:
                return _connect(self._decode(block))
        return Connect(known.authority, known.baggage, *tail)

    def _learn(self, part: bytes) -> Connect | None:
        """What the part before the literals says; None if it is no whole by itself (what looks like our literals is
        the inside of another), speaks of them too, or is larger than any of ours."""
        if len(part) > _KNOWN_SIZE or part[0] == _FIRST[0]:
            return None
        try:
            fields = self._decode(part)
        except ProtocolError:
            return None
        if len(fields) > _KNOWN_FIELDS or any(name in ("forwarded", "traceparent") for name, _ in fields):
            return None
        known = _connect(fields)
        if len(self._cache) >= _KNOWN_MAX:
            self._cache.clear()
        self._cache[part] = known
        return known

    def status(self, block: bytes) -> int:
        """The status of an answer."""
        if block == OK:
            return 200
        for name, value in self._decode(block):
            if name == ":status" and len(value) == 3 and value.isascii() and value.isdigit():
                return int(value)
        raise ProtocolError(PROTOCOL_ERROR, "an answer without a status")

    def skip(self, block: bytes) -> None:
        """A block that means nothing to us: only the decoder's state moves on."""
        self._decode(block)

    def _decode(self, block: bytes) -> list[tuple[str, str]]:
        try:
            fields = [(str(n), str(v)) for n, v in self._decoder.decode(block)]
        except (HPACKError, UnicodeDecodeError) as error:
            raise ProtocolError(COMPRESSION_ERROR, f"a header block that cannot be decoded: {error}") from error
        self._stateless = self._settled
        return fields


def _literals(block: bytes, at: int) -> tuple[str, str] | None:
    """(forwarded, traceparent) if `block[at:]` is nothing but these, as our encoder writes them; None otherwise."""
    found = ["", ""]
    for i, name in enumerate((_FORWARDED, _TRACEPARENT)):
        if not block.startswith(name, at):
            continue
        at += len(name)
        if at >= len(block) or block[at] > 126:
            return None
        end = at + 1 + block[at]
        value = block[at + 1 : end]
        if end > len(block) or not value.isascii():
            return None
        found[i] = value.decode("ascii")
        at = end
    return (found[0], found[1]) if at == len(block) else None


def _connect(fields: list[tuple[str, str]]) -> Connect:
    """Check a decoded request (RFC 9113, sections 8.2, 8.3 and 8.5)."""
    pseudo: dict[str, str] = {}
    plain: dict[str, str] = {}
    for name, value in fields:
        if not name.startswith(":"):
            plain.setdefault(name, value)
            continue
        if plain or name in pseudo:
            raise HeaderError(f"{name[:64]} stands twice or after an ordinary field")
        pseudo[name] = value
    if pseudo.get(":method") != "CONNECT" or not pseudo.get(":authority"):
        raise HeaderError("no CONNECT with an authority")
    if len(pseudo) != 2:
        raise HeaderError(f"a CONNECT with {', '.join(sorted(set(pseudo) - {':method', ':authority'}))[:64]}")
    if len(pseudo[":authority"]) > _AUTHORITY_MAX:
        raise HeaderError(f"an authority of {len(pseudo[':authority'])} characters")
    return Connect(
        pseudo[":authority"], plain.get("baggage", ""), plain.get("forwarded", ""), plain.get("traceparent", "")
    )
