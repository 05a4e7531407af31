"""Packets off the wire -> how many payload bytes were seen in clear, and how many travelled in tunnels. Pure.

The payload of a run is a random marker repeated, so each occurrence on the wire is that many bytes that anybody could
read. TCP is followed by sequence number: a retransmission counts once, and a marker cut in two by a segment boundary
still counts. Anything that is not TCP is searched packet by packet.
"""

import struct
from dataclasses import dataclass

TUNNEL_PORT = 15008

_IPV4, _IPV6, _TCP = 0x0800, 0x86DD, 6
_WRAP = 2**32

_Flow = tuple[bytes, bytes, int, int]


@dataclass(frozen=True, slots=True)
class Segment:
    """One TCP segment: `flow` is (source, destination, source port, destination port)."""

    flow: _Flow
    sequence: int
    syn: bool
    payload: bytes


def segment(ethertype: int, packet: bytes) -> Segment | None:
    """Read a TCP segment from an IP packet; None for anything else, fragments and IPv6 extension headers included."""
    if ethertype == _IPV4 and len(packet) >= 20 and packet[9] == _TCP and not int.from_bytes(packet[6:8]) & 0x3FFF:
        start, end = (packet[0] & 15) * 4, int.from_bytes(packet[2:4])
        source, destination = packet[12:16], packet[16:20]
    elif ethertype == _IPV6 and len(packet) >= 40 and packet[6] == _TCP:
        start, end = 40, 40 + int.from_bytes(packet[4:6])
        source, destination = packet[8:24], packet[24:40]
    else:
        return None
    if len(packet) < start + 20:
        return None
    sport, dport, sequence, _, offset, flags = struct.unpack_from("!HHIIBB", packet, start)
    # A length of zero stands for a segment too large for the field, as the kernel batches them on one machine.
    payload = packet[start + (offset >> 4) * 4 : end if end > start else None]
    return Segment((source, destination, sport, dport), sequence, bool(flags & 2), payload)


class Leaks:
    """Counts for one marker. `clear` and `tunnelled` are payload bytes, `packets` everything seen; `opened` are the
    flows outside of tunnels that began meanwhile, (source, destination, source port, destination port) each."""

    def __init__(self, marker: bytes, tunnel_port: int = TUNNEL_PORT) -> None:
        assert marker
        self.clear = self.tunnelled = self.packets = 0
        self.opened: set[_Flow] = set()
        self._marker, self._tunnel_port = marker, tunnel_port
        self._next: dict[_Flow, int] = {}
        self._carry: dict[_Flow, bytes] = {}

    def packet(self, ethertype: int, data: bytes) -> None:
        """Take in one IP packet."""
        self.packets += 1
        found = segment(ethertype, data)
        if found is None:
            self.clear += data.count(self._marker) * len(self._marker)
            return
        payload = self._new_bytes(found)
        if self._tunnel_port in found.flow[2:]:
            self.tunnelled += len(payload)
        elif found.syn:
            self.opened.add(found.flow)
        if payload:
            self._search(found.flow, payload)

    def _new_bytes(self, found: Segment) -> bytes:
        """The part of a segment not seen before."""
        flow, start = found.flow, (found.sequence + found.syn) % _WRAP
        expected = start if found.syn else self._next.get(flow, start)
        behind = (expected - start) % _WRAP
        if behind >= _WRAP // 2:  # ahead of what we have: a gap, so nothing carries over it
            self._carry.pop(flow, None)
            behind = 0
        elif found.syn:
            self._carry.pop(flow, None)
        fresh = found.payload[behind:]
        if fresh or found.syn:
            self._next[flow] = (start + behind + len(fresh)) % _WRAP
        return fresh

    def _search(self, flow: _Flow, payload: bytes) -> None:
        text = self._carry.get(flow, b"") + payload
        self.clear += text.count(self._marker) * len(self._marker)
        end = text.rfind(self._marker)
        rest = text[end + len(self._marker) :] if end >= 0 else text
        self._carry[flow] = rest[-(len(self._marker) - 1) :] if len(self._marker) > 1 else b""
