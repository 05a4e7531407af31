"""Netlink's framing, both ways. Pure."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One netlink message; `author` is the port of the socket whose request it goes back to."""

    kind: int
    flags: int
    number: int
    author: int
    payload: bytes


def split(data: bytes) -> Iterator[Frame]:
    """The messages of one datagram."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, flags, number, author = struct.unpack_from("=IHHII", data, offset)
        if size < 16:
            return
        yield Frame(kind, flags, number, author, data[offset + 16 : offset + size])
        offset += (size + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, payload) of each attribute; what is cut short is left out."""
    offset = 0
    while offset + 4 <= len(data):
        size, number = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > len(data):
            return
        yield number & 0x3FFF, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


def attribute(number: int, payload: bytes) -> bytes:
    """A netlink attribute; its length does not count the padding."""
    return struct.pack("=HH", 4 + len(payload), number) + payload + bytes(-len(payload) % 4)
