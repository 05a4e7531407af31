"""The values a plan is made of: a table's sets, maps, chains and rules. What the kernel holds decodes to the same.

A rule is a row of statements, plain values without registers; `encode` chooses those, `decode` forgets them again.
Comments and counts are carried along, but two rulesets that differ in nothing else are equal.
"""

import enum
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

TCP, UDP = 6, 17
IPV4, IPV6 = 2, 10
"""Protocol families as `meta nfproto` has them (linux/netfilter.h)."""
LOCAL = 2
"""RTN_LOCAL, an address type of linux/rtnetlink.h."""
LOOPBACK = 1
"""The number of lo in every network namespace."""
ETHERNET = 1
"""ARPHRD_ETHER of linux/if_arp.h."""
REPLY, ORIGINAL = 1, 0
SYN, FLAGS = 0x02, 0x17
"""The TCP flag that opens a connection, and those that together with it mean something else: FIN, RST, ACK."""
SEEN_REPLY, CONFIRMED, DNAT = 0x02, 0x08, 0x20
"""IPS_SEEN_REPLY, IPS_CONFIRMED and IPS_DST_NAT, bits of a connection's status, from
linux/netfilter/nf_conntrack_common.h."""


@dataclass(frozen=True, slots=True)
class Field:
    """Something of a packet that a rule looks at. `kind` and `number` are the kernel's: an expression and its key, or a
    header and an offset into it. `width` in bytes; `big` says that the value is in network order."""

    kind: str
    number: int
    width: int
    text: str
    big: bool = False
    level: int = 0

    def pack(self, value: int) -> bytes:
        return value.to_bytes(self.width, "big" if self.big else sys.byteorder)

    def unpack(self, data: bytes) -> int:
        return int.from_bytes(data, "big" if self.big else sys.byteorder)


MARK = Field("meta", 3, 4, "meta mark")
SKUID = Field("meta", 10, 4, "meta skuid")
NFPROTO = Field("meta", 15, 1, "meta nfproto")
L4PROTO = Field("meta", 16, 1, "meta l4proto")
IIF = Field("meta", 4, 4, "iif")
OIF = Field("meta", 5, 4, "oif")
IIFTYPE = Field("meta", 8, 2, "meta iiftype")
IIFNAME = Field("meta", 6, 16, "iifname", big=True)
OIFNAME = Field("meta", 7, 16, "oifname", big=True)
SADDR_LINK = Field("link", 6, 6, "ether saddr", big=True)
SADDR4 = Field("network", 12, 4, "ip saddr", big=True)
DADDR4 = Field("network", 16, 4, "ip daddr", big=True)
SADDR6 = Field("network", 8, 16, "ip6 saddr", big=True)
DADDR6 = Field("network", 24, 16, "ip6 daddr", big=True)
TCP_FLAGS = Field("transport", 13, 1, "tcp flags", big=True)
DPORT = Field("transport", 2, 2, "tcp dport", big=True)
DADDR_TYPE = Field("fib", 3, 4, "fib daddr type")
CT_DIRECTION = Field("ct", 1, 1, "ct direction")
CT_STATUS = Field("ct", 2, 4, "ct status")
CT_MARK = Field("ct", 3, 4, "ct mark")
CT_LABEL = Field("ct", 13, 16, "ct label")
CT_DPORT = Field("ct original", 12, 2, "ct original proto-dst", big=True)
CT_TRANSLATED = Field("ct reply", 11, 2, "ct reply proto-src", big=True)
"""The port that the connection really goes to: from there its answers come."""
SOCKET_MARK = Field("socket", 1, 4, "socket mark")

PLAIN_FIELDS = (
    *(
        MARK,
        SKUID,
        NFPROTO,
        L4PROTO,
        IIF,
        OIF,
        IIFTYPE,
        IIFNAME,
        OIFNAME,
        SADDR_LINK,
        SADDR4,
        DADDR4,
        SADDR6,
        DADDR6,
        DPORT,
        TCP_FLAGS,
    ),
    *(DADDR_TYPE, CT_DIRECTION, CT_STATUS, CT_MARK, CT_LABEL, CT_DPORT, CT_TRANSLATED, SOCKET_MARK),
)


def cgroup(level: int) -> Field:
    """The ancestor, `level` steps below the root, of the cgroup in which the packet's socket was made."""
    return Field("socket", 3, 8, f"socket cgroupv2 level {level}", level=level)


class Key(enum.Enum):
    """What a set or map holds: name in nft's words, number of the type, width in bytes. An element is one value; for
    NETWORKs it is a range, its first and last value one after the other. Those of PASSING go by themselves in time."""

    UID = ("uid", 24, 4)
    MARK = ("mark", 19, 4)
    PORT = ("inet_service", 13, 2)
    CGROUP = ("cgroupsv2", 46, 8)
    ADDRESS4 = ("ipv4_addr", 7, 4)
    ADDRESS6 = ("ipv6_addr", 8, 16)
    # A concatenation: six bits of the number for each part, and each part padded to four bytes.
    ENDPOINT4 = ("ipv4_addr . inet_service", 7 << 6 | 13, 8)
    ENDPOINT6 = ("ipv6_addr . inet_service", 8 << 6 | 13, 20)
    NETWORK4 = ("ipv4_addr", 7, 4, "interval")
    NETWORK6 = ("ipv6_addr", 8, 16, "interval")
    # A card's six bytes take eight.
    STATION4 = ("ipv4_addr . ether_addr", 7 << 6 | 9, 12)
    STATION6 = ("ipv6_addr . ether_addr", 8 << 6 | 9, 24)
    IFNAME = ("ifname", 41, 16)
    DOOR = ("ifname . inet_service", 41 << 6 | 13, 20)
    PASSING = ("inet_proto", 12, 1, "timeout")

    @property
    def text(self) -> str:
        return str(self.value[0])

    @property
    def number(self) -> int:
        return int(self.value[1])

    @property
    def width(self) -> int:
        return int(self.value[2])

    @property
    def ranges(self) -> bool:
        """Whether elements are ranges."""
        return "interval" in self.value

    @property
    def passing(self) -> bool:
        """Whether elements go by themselves."""
        return "timeout" in self.value

    @property
    def big(self) -> bool:
        """Whether elements are in network order. nft reads the names of interfaces as numbers of the machine's own."""
        return self not in (Key.UID, Key.MARK, Key.CGROUP, Key.IFNAME)

    def show(self, element: bytes) -> str:
        """An element as people read it."""
        if self.ranges:
            return _show_range(element[: self.width], element[self.width :])
        if self in (Key.IFNAME, Key.DOOR):
            name = f'"{element[:16].rstrip(bytes(1)).decode(errors="replace")}"'
            return name if self is Key.IFNAME else f"{name} . {int.from_bytes(element[16:18], 'big')}"
        if self in (Key.ADDRESS4, Key.ENDPOINT4, Key.STATION4):
            address = inet_ntop(AF_INET, element[:4])
        elif self in (Key.ADDRESS6, Key.ENDPOINT6, Key.STATION6):
            address = inet_ntop(AF_INET6, element[:16])
        elif self is Key.PASSING and element == bytes([TCP]):
            return "tcp"
        else:
            return str(int.from_bytes(element, "big" if self.big else sys.byteorder))
        if self in (Key.ADDRESS4, Key.ADDRESS6):
            return address
        if self in (Key.STATION4, Key.STATION6):
            return f"{address} . {element[-8:-2].hex(':')}"
        return f"{address} . {int.from_bytes(element[-4:-2], 'big')}"


def number_element(key: Key, value: int) -> bytes:
    """The element of a set of uids, marks, ports or cgroup ids."""
    return value.to_bytes(key.width, "big" if key.big else sys.byteorder)


def address_element(address: str) -> tuple[Key, bytes]:
    """The element for an address, and the key of sets that take it."""
    if ":" in address:
        return Key.ADDRESS6, inet_pton(AF_INET6, address)
    return Key.ADDRESS4, inet_pton(AF_INET, address)


def endpoint_element(address: str, port: int) -> tuple[Key, bytes]:
    """The element for an (address, port) pair, and the key of sets that take it."""
    tail = port.to_bytes(2, "big") + b"\0\0"
    if ":" in address:
        return Key.ENDPOINT6, inet_pton(AF_INET6, address) + tail
    return Key.ENDPOINT4, inet_pton(AF_INET, address) + tail


def station_element(address: str, card: str) -> tuple[Key, bytes]:
    """The element for an address and the card (`02:42:ac:11:00:02`) that has it, and the key of sets that take it.
    ValueError for a card that is none."""
    tail = bytes.fromhex(card.replace(":", ""))
    if len(tail) != 6:
        raise ValueError(f"{card!r} is no link-layer address")
    if ":" in address:
        return Key.STATION6, inet_pton(AF_INET6, address) + tail + bytes(2)
    return Key.STATION4, inet_pton(AF_INET, address) + tail + bytes(2)


def interface_element(name: str) -> bytes:
    """The element of a set of interfaces."""
    return name.encode().ljust(Key.IFNAME.width, b"\0")


def door_element(interface: str, port: int) -> bytes:
    """The element of a set of ports behind interfaces."""
    return interface_element(interface) + port.to_bytes(2, "big") + bytes(2)


def network_elements(networks: Iterable[str]) -> dict[Key, frozenset[bytes]]:
    """The elements for networks in CIDR notation, by the key of sets that take them. What lies in another one is left
    out: the kernel takes no ranges that overlap."""
    parsed = [ip_network(text) for text in networks]
    v4 = collapse_addresses(n for n in parsed if isinstance(n, IPv4Network))
    v6 = collapse_addresses(n for n in parsed if isinstance(n, IPv6Network))
    return {key: frozenset(n[0].packed + n[-1].packed for n in of) for key, of in _by_key(v4, v6)}


def _by_key(
    v4: Iterable[IPv4Network], v6: Iterable[IPv6Network]
) -> Iterable[tuple[Key, Iterable[IPv4Network | IPv6Network]]]:
    return (Key.NETWORK4, v4), (Key.NETWORK6, v6)


def _show_range(first: bytes, last: bytes) -> str:
    low, size = int.from_bytes(first), int.from_bytes(last) - int.from_bytes(first) + 1
    bits = (size - 1).bit_length()
    if size == 1 << bits and low % size == 0:
        return f"{ip_address(first)}/{8 * len(first) - bits}" if bits else str(ip_address(first))
    return f"{ip_address(first)}-{ip_address(last)}"


class Code(enum.IntEnum):
    """Verdict codes of linux/netfilter/nf_tables.h."""

    DROP = 0
    ACCEPT = 1
    JUMP = -3
    GOTO = -4
    RETURN = -5


@dataclass(frozen=True, slots=True)
class Verdict:
    code: int
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Goes on if the field, with only the bits of `mask`, equals the value; or differs, without `equal`."""

    field: Field
    value: int
    mask: int | None = None
    equal: bool = True


@dataclass(frozen=True, slots=True)
class Member:
    """Goes on if the fields, one after the other, are an element of the set; or are none, without `inside`."""

    fields: tuple[Field, ...]
    set: str
    inside: bool = True


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Takes the verdict that the map has for the field, if it has one."""

    field: Field
    map: str


@dataclass(frozen=True, slots=True)
class Count:
    """Counts what comes by: in a nat chain, connections."""

    packets: int = field(default=0, compare=False)
    bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Redirect:
    """To this port of the machine itself."""

    port: int


@dataclass(frozen=True, slots=True)
class Reset:
    """Answers with a TCP reset."""


@dataclass(frozen=True, slots=True)
class PutMark:
    """Sets the mark of the packet, or with `connection` of its tracked connection."""

    value: int
    connection: bool = False


@dataclass(frozen=True, slots=True)
class PutLabel:
    """Sets one of the labels of the packet's tracked connection, by its number."""

    number: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A statement in the kernel that no plan of ours makes; never equal to one that is planned."""

    text: str


Statement = Verdict | Match | Member | Dispatch | Count | Redirect | Reset | PutMark | PutLabel | Unknown


@dataclass(frozen=True, slots=True)
class Rule:
    statements: tuple[Statement, ...]
    comment: str = field(default="", compare=False)


class Hook(enum.IntEnum):
    """Where base chains sit (enum nf_inet_hooks)."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3


@dataclass(frozen=True, slots=True)
class Base:
    """What makes a chain a base chain. Planned ones let through what no rule decides."""

    type: str
    hook: int
    priority: int
    accepts: bool = True


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    rules: tuple[Rule, ...]
    base: Base | None = None


@dataclass(frozen=True, slots=True)
class Set:
    name: str
    key: Key | None
    """None for a set in the kernel of a type that no plan of ours makes."""
    elements: frozenset[bytes] = frozenset()
    seconds: float | None = field(default=None, compare=False)
    """How long elements of a passing kind stay."""


@dataclass(frozen=True, slots=True)
class VerdictMap:
    name: str
    key: Key | None
    elements: frozenset[tuple[bytes, Verdict]] = frozenset()


Group = Set | VerdictMap


@dataclass(frozen=True, slots=True)
class Ruleset:
    """One table of family inet. Sets, maps and chains have names of their own and no order."""

    table: str
    sets: tuple[Set, ...] = ()
    maps: tuple[VerdictMap, ...] = ()
    chains: tuple[Chain, ...] = ()


def endpoint_sets(names: Mapping[Key, str], pairs: Iterable[tuple[str, int]]) -> tuple[Set, ...]:
    """The (address, port) pairs as two sets, one for each IP version."""
    found: dict[Key, set[bytes]] = {key: set() for key in names}
    for address, port in pairs:
        key, element = endpoint_element(address, port)
        found[key].add(element)
    return tuple(Set(names[key], key, frozenset(elements)) for key, elements in found.items())


def numbers(name: str, key: Key, values: Iterable[int]) -> Set:
    """A set of ports, uids or protocols."""
    return Set(name, key, frozenset(number_element(key, value) for value in values))
