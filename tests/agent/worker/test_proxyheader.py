import ipaddress
import struct

from hypothesis import given
from hypothesis import strategies as st

from agent.worker.proxyheader import AUTHORITY, IDENTITY, header

ENDS = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))


def _read(data: bytes) -> tuple[tuple[str, int], tuple[str, int], dict[int, str], bytes]:
    """Source, destination, TLVs and what follows, as section 2.2 has them."""
    assert data[:13] == b"\r\n\r\n\0\r\nQUIT\n\x21"
    width = {0x11: 4, 0x21: 16}[data[13]]
    end = 16 + struct.unpack_from("!H", data, 14)[0]
    source, destination = data[16 : 16 + width], data[16 + width : 16 + 2 * width]
    ports = struct.unpack_from("!HH", data, 16 + 2 * width)
    rest, tlvs = data[20 + 2 * width : end], {}
    while rest:
        kind, size = struct.unpack_from("!BH", rest)
        assert len(rest) >= 3 + size
        tlvs[kind], rest = rest[3 : 3 + size].decode(), rest[3 + size :]
    ends = [(str(ipaddress.ip_address(a)), p) for a, p in zip((source, destination), ports, strict=True)]
    return ends[0], ends[1], tlvs, data[end:]


def test_a_header_as_the_specification_has_it() -> None:
    assert header(("10.0.0.7", 40000), ("10.0.0.2", 80), "") == (
        b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c\x0a\x00\x00\x07\x0a\x00\x00\x02\x9c\x40\x00\x50"
    )


@given(ENDS, ENDS, st.sampled_from(["", "spiffe://shop.example/ns/shop/sa/web", "spiffe://" + "x" * 2000]))
def test_what_is_said_can_be_read(source: tuple[str, int], destination: tuple[str, int], identity: str) -> None:
    found = _read(header(source, destination, identity) + b"GET /")
    mapped = ":" in source[0] or ":" in destination[0]
    assert found == (
        _shown(source, mapped),
        _shown(destination, mapped),
        {AUTHORITY: identity, IDENTITY: identity} if identity else {},
        b"GET /",
    )


def _shown(end: tuple[str, int], mapped: bool) -> tuple[str, int]:
    address = f"::ffff:{end[0]}" if mapped and ":" not in end[0] else end[0]
    return str(ipaddress.ip_address(address)), end[1]
