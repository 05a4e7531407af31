"""The PROXY protocol's header, version 2: tells an application who calls, before the first byte of the caller. Pure.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt, section 2.2. The caller's identity goes along twice: in TLV
0xD0, where Istio has it, and as the authority (0x02), which is all that older readers can tell of.
"""

import ipaddress
import struct

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_VERSION_AND_PROXY = 0x21
_TCP4, _TCP6 = 0x11, 0x21
AUTHORITY, IDENTITY = 0x02, 0xD0
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def header(source: tuple[str, int], destination: tuple[str, int], identity: str) -> bytes:
    """The header for a connection between two (address, TCP port); `identity` is the caller's SPIFFE URI, empty for one
    who proved nothing. Where only one of the addresses is IPv6, the other is written in its IPv6-mapped form."""
    ends: list[Address] = [ipaddress.ip_address(address) for address, _ in (source, destination)]
    family = _TCP4 if all(end.version == 4 for end in ends) else _TCP6
    body = b"".join(_packed(end, family) for end in ends) + struct.pack("!HH", source[1], destination[1])
    if identity:
        said = identity.encode()
        body += b"".join(struct.pack("!BH", kind, len(said)) + said for kind in (AUTHORITY, IDENTITY))
    return _SIGNATURE + struct.pack("!BBH", _VERSION_AND_PROXY, family, len(body)) + body


def _packed(address: Address, family: int) -> bytes:
    if family == _TCP6 and address.version == 4:
        return bytes(10) + b"\xff\xff" + address.packed
    return address.packed
