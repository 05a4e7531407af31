"""What others have put into the kernel beside us: routing rules and routes, chains, and what they do with marks.

Reads everything, changes nothing, blocks. Rules of iptables-nft are chains like others, in which matches and targets of
the old kind are wrapped; those of iptables-legacy are not listed by netlink: of those only the tables' names are known.
"""

import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from redirect.decode import decode_base, decode_rule
from redirect.frames import attributes
from redirect.namespace import in_namespace
from redirect.netlink import NETFILTER, ROUTE, Netlink
from redirect.render import render_rule
from redirect.routing import FAMILIES, GET_ROUTE, GET_RULE, listed
from redirect.ruleset import Base

_NFT, _GET_CHAIN, _GET_RULE = 10, 4, 7
_FAMILIES = {1: "inet", 2: "ip", 10: "ip6"}
_ABOUT = "a listing of the neighbours'"
ALL_BITS = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """One of `ip rule`. A `mask` of 0: it does not look at marks."""

    family: int
    priority: int
    mark: int
    mask: int
    table: int
    protocol: int
    inverted: bool = False

    def __str__(self) -> str:
        marked = f" fwmark {self.mark:#x}/{self.mask:#x}" if self.mask else ""
        return f"ip rule {self.priority}:{' not' if self.inverted else ''}{marked} lookup {self.table}"


@dataclass(frozen=True, slots=True)
class MarkUse:
    """What a rule does with marks: those of packets with these bits, or sets them so."""

    sets: bool
    value: int
    mask: int
    where: str


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A chain of another table. `numbers` are the 16-bit values its rules compare with: ports, among others."""

    table: str
    name: str
    base: Base | None
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Neighbours:
    """All that is there, our own table left out. `routes` has (table, protocol) of each route."""

    rules: tuple[RoutingRule, ...] = ()
    routes: tuple[tuple[int, int], ...] = ()
    chains: tuple[ForeignChain, ...] = ()
    marks: tuple[MarkUse, ...] = ()
    legacy: tuple[str, ...] = ()


def neighbours(own: Iterable[str], netns: str | None = None) -> Neighbours:
    """Of the caller's network namespace, or of `netns`; `own` are the names of our tables, family inet. OSError,
    NamespaceError, or Refused: without CAP_NET_ADMIN, or where they change without an end."""
    return in_namespace(netns, lambda: _look(frozenset(own))) if netns else _look(frozenset(own))


def _look(own: frozenset[str]) -> Neighbours:
    with closing(Netlink(ROUTE)) as routing:
        rules = [_rule(row) for f in FAMILIES for row in listed(routing, GET_RULE, f)]
        routes = [_route(row) for f in FAMILIES for row in listed(routing, GET_ROUTE, f)]
    with closing(Netlink(NETFILTER)) as nft:
        chains = [_Row.read(row, 3) for row in nft.whole(_NFT << 8 | _GET_CHAIN, bytes(4), f"{_ABOUT} chains")]
        laws = [_Row.read(row, 2) for row in nft.whole(_NFT << 8 | _GET_RULE, bytes(4), f"{_ABOUT} rules")]
    mine = {f"inet {name}" for name in own}
    chains = [row for row in chains if row.table not in mine]
    laws = [row for row in laws if row.table not in mine]
    bases = {(row.table, row.chain): decode_base(row.data) for row in chains}
    numbers: dict[tuple[str, str], set[int]] = {}
    for law in laws:
        numbers.setdefault((law.table, law.chain), set()).update(_numbers(law))
    return Neighbours(
        tuple(rules),
        tuple(routes),
        tuple(ForeignChain(t, c, base, frozenset(numbers.get((t, c), ()))) for (t, c), base in bases.items()),
        tuple(use for law in laws for use in _uses(law)),
        tuple(_legacy()),
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """A chain or rule with its attributes; `table` has the family before its name."""

    table: str
    chain: str
    data: dict[int, bytes]

    @classmethod
    def read(cls, row: bytes, chain: int) -> "_Row":
        data = dict(attributes(row[4:]))
        return cls(f"{_FAMILIES.get(row[0], row[0])} {_text(data.get(1))}", _text(data.get(chain)), data)

    def expressions(self) -> Iterator[tuple[str, dict[int, bytes]]]:
        for _, expression in attributes(self.data.get(4, b"")):
            parts = dict(attributes(expression))
            yield _text(parts.get(1)), dict(attributes(parts.get(2, b"")))


def _uses(law: _Row) -> Iterator[MarkUse]:
    """What a rule does with marks. Values pass through registers; a rule has few enough to follow the last one."""
    where = f"table {law.table}, chain {law.chain}: {render_rule(decode_rule(law.data))}"
    loaded, mask, value = False, ALL_BITS, 0
    for name, data in law.expressions():
        match name:
            case "meta" | "ct" if _big(data.get(2)) == 3 and 1 in data:
                loaded, mask, value = True, ALL_BITS, 0
            case "meta" | "ct" if _big(data.get(2)) == 3:
                # Bits that stay as they were are none that it sets.
                yield MarkUse(True, value, ALL_BITS & ~mask if loaded else ALL_BITS, where)
                loaded = False
            case "immediate":
                loaded, value = False, _native(_value(data.get(2)))
            case "bitwise" if loaded:
                mask, value = _native(_value(data.get(4))), _native(_value(data.get(5)))
            case "cmp" if loaded:
                if _big(data.get(2)) == 0:
                    yield MarkUse(False, _native(_value(data.get(3))), mask, where)
                loaded = False
            case "match" | "target":
                yield from _wrapped(_text(data.get(1)), data.get(3, b""), where)


def _wrapped(name: str, info: bytes, where: str) -> Iterator[MarkUse]:
    """Matches and targets of iptables: xt_mark_mtinfo1 and xt_mark_tginfo2, each a mark and a mask first."""
    if name not in ("mark", "MARK", "connmark") or len(info) < 8:
        return
    mark, mask = struct.unpack_from("=II", info)
    inverted = name != "MARK" and info[8:9] == b"\1"
    if not inverted:
        yield MarkUse(name == "MARK", mark, mask, where)


def _numbers(law: _Row) -> Iterator[int]:
    """The 16-bit values that a rule compares with, those in wrapped matches of TCP included."""
    for name, data in law.expressions():
        if name == "cmp" and len(_value(data.get(3))) == 2:
            yield int.from_bytes(_value(data.get(3)), "big")
        elif name == "match" and _text(data.get(1)) == "tcp" and len(data.get(3, b"")) >= 8:
            # xt_tcp: two source ports, two destination ports.
            first, last = struct.unpack_from("=HH", data[3], 4)
            yield from (first, last)


def _rule(row: bytes) -> RoutingRule:
    """fib_rule_hdr: family, lengths, tos, table, two reserved, action, flags; FIB_RULE_INVERT is 2."""
    data = dict(attributes(row[12:]))
    mark = _native(data.get(10))
    return RoutingRule(
        row[0],
        _native(data.get(6)),
        mark,
        _native(data.get(16)) if mark or 16 in data else 0,
        _native(data.get(15)) or row[4],
        data.get(21, b"\0")[0],
        bool(_native(row[8:12]) & 2),
    )


def _route(row: bytes) -> tuple[int, int]:
    """rtmsg: family, two lengths, tos, table, protocol."""
    return _native(dict(attributes(row[12:])).get(15)) or row[4], row[5]


def _legacy() -> Iterator[str]:
    for path, program in (("ip_tables_names", "iptables"), ("ip6_tables_names", "ip6tables")):
        try:
            with open(f"/proc/thread-self/net/{path}") as names:
                yield from (f"{program}-legacy {name.strip()}" for name in names)
        except OSError:
            continue


def _text(data: bytes | None) -> str:
    return (data or b"").partition(b"\0")[0].decode(errors="replace")


def _value(data: bytes | None) -> bytes:
    return dict(attributes(data or b"")).get(1, b"")


def _big(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")


def _native(data: bytes | None) -> int:
    return int.from_bytes((data or b"")[:4], sys.byteorder)
