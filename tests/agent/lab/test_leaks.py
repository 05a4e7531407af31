"""What the demo's claim rests on: the counter of readable bytes."""

import itertools
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from agent.lab.leaks import TUNNEL_PORT, Leaks, segment

MARKER = b"marker-of-this-run"


def tcp(payload: bytes, *, seq: int = 0, dport: int = 80, sport: int = 4000, flags: int = 0x18) -> bytes:
    header = struct.pack("!HHIIBBHHH", sport, dport, seq % 2**32, 0, 5 << 4, flags, 0, 0, 0)
    total = 40 + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, total, 0, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    return ip + header + payload


def tcp6(payload: bytes) -> bytes:
    header = struct.pack("!HHIIBBHHH", 4000, 80, 7, 0, 5 << 4, 0x18, 0, 0, 0)
    addresses = socket.inet_pton(socket.AF_INET6, "fd77::1") + socket.inet_pton(socket.AF_INET6, "fd77::2")
    return struct.pack("!IHBB", 6 << 28, len(header) + len(payload), 6, 64) + addresses + header + payload


def udp(payload: bytes) -> bytes:
    header = struct.pack("!HHHH", 53, 53, 8 + len(payload), 0)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    return ip + header + payload


@given(
    repeats=st.integers(0, 40),
    noise=st.binary(max_size=50).filter(lambda b: b"m" not in b),
    cuts=st.lists(st.integers(1, 800), max_size=12),
    start=st.integers(0, 2**32 - 1),
    again=st.lists(st.integers(0, 12), max_size=4),
)
def test_counts_every_marker_however_the_stream_is_cut_and_resent(
    repeats: int, noise: bytes, cuts: list[int], start: int, again: list[int]
) -> None:
    stream = noise + MARKER * repeats + noise
    edges = sorted({0, len(stream), *(c for c in cuts if c < len(stream))})
    pieces = [(a, stream[a:b]) for a, b in itertools.pairwise(edges)]
    leaks = Leaks(MARKER)
    leaks.packet(0x0800, tcp(b"", seq=start - 1, flags=2))
    for number, (offset, piece) in enumerate(pieces):
        leaks.packet(0x0800, tcp(piece, seq=start + offset))
        for index in again:
            if index <= number:
                leaks.packet(0x0800, tcp(pieces[index][1], seq=start + pieces[index][0]))
    assert leaks.clear == repeats * len(MARKER)
    assert leaks.tunnelled == 0


def test_flows_do_not_run_into_each_other() -> None:
    leaks = Leaks(MARKER)
    leaks.packet(0x0800, tcp(MARKER[:5], sport=1))
    leaks.packet(0x0800, tcp(MARKER[5:], sport=2))
    assert leaks.clear == 0


def test_a_gap_joins_nothing() -> None:
    leaks = Leaks(MARKER)
    leaks.packet(0x0800, tcp(MARKER[:5], seq=0))
    leaks.packet(0x0800, tcp(MARKER[5:], seq=100))
    assert leaks.clear == 0


def test_counts_tunnel_bytes_once_and_still_looks_inside() -> None:
    leaks = Leaks(MARKER)
    for _ in range(2):
        leaks.packet(0x0800, tcp(b"x" * 100 + MARKER, dport=TUNNEL_PORT))
    assert (leaks.tunnelled, leaks.clear) == (100 + len(MARKER), len(MARKER))


def test_sees_ipv6_and_udp() -> None:
    leaks = Leaks(MARKER)
    leaks.packet(0x86DD, tcp6(MARKER))
    leaks.packet(0x0800, udp(b"a" + MARKER + b"b"))
    assert leaks.clear == 2 * len(MARKER)


@given(st.sampled_from([0x0800, 0x86DD, 0x0806]), st.binary(max_size=120))
def test_survives_arbitrary_packets(ethertype: int, packet: bytes) -> None:
    leaks = Leaks(MARKER)
    leaks.packet(ethertype, packet)
    assert leaks.packets == 1


def test_padding_behind_a_short_packet_is_no_payload() -> None:
    found = segment(0x0800, tcp(b"ab") + b"\0" * 4)
    assert found is not None
    assert found.payload == b"ab"
