"""Ruleset -> netlink messages. Pure: bytes only, no socket.

Tables, chains, sets and expressions are built with pyroute2's message classes, each from fresh values: encoding one
twice corrupts it. Where there is much of it, bytes are packed by hand: a mesh has 100,000 elements, and a packed one
costs a microsecond where an object costs thirty. Expressions are those of linux/netfilter/nf_tables.h.
"""

import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from pyroute2.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES

from redirect.frames import attribute
from redirect.messages import nft
from redirect.render import render_rule
from redirect.ruleset import (
    ORIGINAL,
    REPLY,
    Chain,
    Count,
    Dispatch,
    Field,
    Group,
    Key,
    Match,
    Member,
    PutLabel,
    PutMark,
    Redirect,
    Reset,
    Rule,
    Ruleset,
    Set,
    Statement,
    Verdict,
    VerdictMap,
)

INET = 1
"""NFPROTO_INET."""
BATCH_BEGIN, BATCH_END = 0x10, 0x11
ADD = NLM_F_REQUEST | NLM_F_CREATE
OWNED, PERSISTENT = 2, 4
"""NFT_TABLE_F_OWNER: nobody but the socket that made or took the table changes it. NFT_TABLE_F_PERSIST: it outlives
that socket, and may be taken by the next."""
VERDICT_TYPE = 0xFFFFFF00
"""NFT_DATA_VERDICT, the data type of maps of verdicts."""
FIRST_REGISTER = 8
"""NFT_REG32_00; the kernel's registers are four bytes wide, and the older names 1 to 4 stand for four of them each."""
HEADERS = ("link", "network", "transport")
"""In the order of NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER and NFT_PAYLOAD_TRANSPORT_HEADER."""
_INTERVAL_END = (1).to_bytes(4, "big")
"""NFT_SET_ELEM_INTERVAL_END, a flag of elements."""
_TABLE_COMMENT = "Culvert's; with no agent running, `nft delete table inet culvert` removes it"


class _RuleMessage(nft.nft_rule_msg):
    """The stock classes do not know cgroups and their level, and encode the result of fib lookups wrongly."""

    class nft_expr(nft.nft_rule_msg.nft_expr):  # noqa: N801 - pyroute2 finds it by this name
        class nft_socket(nft.nft_regs):  # noqa: N801
            nla_map = (
                ("NFTA_SOCKET_UNSPEC", "none"),
                ("NFTA_SOCKET_KEY", "be32"),
                ("NFTA_SOCKET_DREG", "be32"),
                ("NFTA_SOCKET_LEVEL", "be32"),
            )

        class nft_fib(nft.nft_regs):  # noqa: N801
            nla_map = (
                ("NFTA_FIB_UNSPEC", "none"),
                ("NFTA_FIB_DREG", "be32"),
                ("NFTA_FIB_RESULT", "be32"),
                ("NFTA_FIB_FLAGS", "be32"),
            )


@dataclass(frozen=True, slots=True)
class Message:
    """One request, its sequence number still to be set by `batch`. `about` names it in errors."""

    data: bytes
    about: str


def batch(messages: Iterable[Message], first: int = 1) -> bytes:
    """All of them as one transaction. Messages are numbered from `first`, which is the opening frame's own number."""
    rows = [_frame(BATCH_BEGIN), *(m.data for m in messages), _frame(BATCH_END)]
    return b"".join(row[:8] + struct.pack("=I", first + n) + row[12:] for n, row in enumerate(rows))


def replace_table(ruleset: Ruleset, flags: int = 0) -> list[Message]:
    """The table afresh, with these flags, whatever was in it. Adding it first lets the deletion succeed where there was
    none."""
    table = ruleset.table
    groups: tuple[Group, ...] = (*ruleset.sets, *ruleset.maps)
    return [
        *remove_table(table),
        take_table(table, flags),
        *add_groups(table, groups),
        # Verdicts and rules name chains, so that these come first.
        *(add_chain(table, chain) for chain in ruleset.chains),
        *(message for group in groups for message in add_elements(table, group)),
        *(message for chain in ruleset.chains for message in add_rules(table, chain)),
    ]


def take_table(table: str, flags: int) -> Message:
    """The table there and with these flags. One that persists can be taken over when its owner is gone."""
    attributes = [*_table(table), *([("NFTA_TABLE_FLAGS", flags)] if flags else [])]
    return _message(nft.nft_table_msg, nft.NFT_MSG_NEWTABLE, ADD, attributes, f"table {table}")


def own_table(ruleset: Ruleset) -> list[Message]:
    """A table that was not there before, and that ends with the socket these are sent by."""
    table = ruleset.table
    return [
        take_table(table, OWNED),
        *(add_chain(table, chain) for chain in ruleset.chains),
        *(message for chain in ruleset.chains for message in add_rules(table, chain)),
    ]


def remove_table(table: str) -> list[Message]:
    """No table of this name afterwards, whether there was one or not."""
    return [
        _message(nft.nft_table_msg, nft.NFT_MSG_NEWTABLE, ADD, _table(table), f"table {table}"),
        _message(nft.nft_table_msg, nft.NFT_MSG_DELTABLE, NLM_F_REQUEST, _name(table), f"deletion of table {table}"),
    ]


def add_groups(table: str, groups: Iterable[Group]) -> list[Message]:
    """Sets and maps, without their elements. All that one transaction adds must be named in one call."""
    return [_group(table, group, number) for number, group in enumerate(groups, 1)]


def add_elements(table: str, group: Group) -> list[Message]:
    """The elements of this value put into the set or map of its name."""
    assert group.key is not None
    packed: Iterable[bytes]
    if isinstance(group, Set):
        packed, width = _packers(group.key, group.elements, group.seconds), _width(group.key)
    else:
        packed, width = (_verdict_element(e, v) for e, v in group.elements), group.key.width + 300
    return list(_elements(table, group.name, nft.NFT_MSG_NEWSETELEM, ADD, packed, width))


def remove_elements(table: str, name: str, key: Key | None, elements: Iterable[bytes]) -> list[Message]:
    """Elements taken out of a set or map with that key; one that is not there fails."""
    assert key is not None
    packed = _packers(key, elements)
    return list(_elements(table, name, nft.NFT_MSG_DELSETELEM, NLM_F_REQUEST, packed, _width(key)))


def remove_group(table: str, name: str) -> Message:
    """The set or map deleted; no rule may name it any more."""
    attributes = [("NFTA_SET_TABLE", table), ("NFTA_SET_NAME", name)]
    return _message(nft.nft_set_msg, nft.NFT_MSG_DELSET, NLM_F_REQUEST, attributes, f"deletion of set {name}")


def add_chain(table: str, chain: Chain) -> Message:
    """The chain, without its rules."""
    attributes: list[Any] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", chain.name)]
    if base := chain.base:
        place = [("NFTA_HOOK_HOOKNUM", int(base.hook)), ("NFTA_HOOK_PRIORITY", base.priority)]
        attributes += [("NFTA_CHAIN_TYPE", base.type), ("NFTA_CHAIN_HOOK", {"attrs": place})]
    return _message(nft.nft_chain_msg, nft.NFT_MSG_NEWCHAIN, ADD, attributes, f"chain {chain.name}")


def remove_chain(table: str, name: str) -> Message:
    """The chain deleted; it must be empty, and no verdict may name it any more."""
    attributes = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", name)]
    return _message(nft.nft_chain_msg, nft.NFT_MSG_DELCHAIN, NLM_F_REQUEST, attributes, f"deletion of chain {name}")


def add_rules(table: str, chain: Chain) -> list[Message]:
    """The rules of this value behind those that its chain has."""
    return [_rule(table, chain.name, number, rule) for number, rule in enumerate(chain.rules, 1)]


def flush_chain(table: str, name: str) -> Message:
    """All rules of the chain deleted."""
    payload = attribute(1, _string(table)) + attribute(2, _string(name))
    return Message(_frame(NFNL_SUBSYS_NFTABLES << 8 | nft.NFT_MSG_DELRULE, payload=payload), f"flush of chain {name}")


def _name(table: str) -> list[Any]:
    return [("NFTA_TABLE_NAME", table)]


def _table(table: str) -> list[Any]:
    return [*_name(table), ("NFTA_TABLE_USERDATA", _TABLE_COMMENT)]


def _group(table: str, group: Group, number: int) -> Message:
    key = group.key
    assert key is not None
    # Lets `nft list` print what the kernel keeps as mere bytes: 1 is the machine's own order, 2 the network's.
    order = struct.pack("=I", 2 if key.big else 1)
    attributes: list[Any] = [
        ("NFTA_SET_TABLE", table),
        ("NFTA_SET_NAME", group.name),
        ("NFTA_SET_ID", number),
        ("NFTA_SET_KEY_TYPE", key.number),
        ("NFTA_SET_KEY_LEN", key.width),
        ("NFTA_SET_USERDATA", [("NFTNL_UDATA_SET_KEYBYTEORDER", order)]),
    ]
    if isinstance(group, VerdictMap):
        attributes += [("NFTA_SET_FLAGS", {"NFT_SET_MAP"}), ("NFTA_SET_DATA_TYPE", VERDICT_TYPE)]
        what = "map"
    else:
        attributes += [("NFTA_SET_FLAGS", {"NFT_SET_INTERVAL"})] if key.ranges else []
        attributes += [("NFTA_SET_FLAGS", {"NFT_SET_TIMEOUT"})] if key.passing else []
        what = "set"
    return _message(nft.nft_set_msg, nft.NFT_MSG_NEWSET, ADD, attributes, f"{what} {group.name} ({key.text})")


def _rule(table: str, chain: str, number: int, rule: Rule) -> Message:
    expressions = b"".join(_counter(s) if isinstance(s, Count) else _packed(s) for s in rule.statements)
    # User data are rows of type, length, value; type 0 is a comment.
    comment = _string(rule.comment)
    payload = (
        attribute(1, _string(table))
        + attribute(2, _string(chain))
        + attribute(4, expressions)
        + (attribute(7, bytes([0, len(comment)]) + comment) if rule.comment else b"")
    )
    frame = _frame(NFNL_SUBSYS_NFTABLES << 8 | nft.NFT_MSG_NEWRULE, ADD | NLM_F_APPEND, payload)
    return Message(frame, f"rule {number} of chain {chain} ({render_rule(rule)})")


@lru_cache(4096)
def _packed(statement: Statement) -> bytes:
    """The expressions of one statement. Rules repeat themselves, and remembering these is fifty times cheaper."""
    expressions = [
        {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attributes})]}
        for name, attributes in _expressions(statement)
    ]
    message = _RuleMessage()
    message["attrs"] = [("NFTA_RULE_EXPRESSIONS", expressions)]
    message.encode()
    # Behind the headers of the message and of its one attribute.
    return bytes(message.data[24:])


def _counter(count: Count) -> bytes:
    """By hand, and not remembered: counts that differ are equal as statements."""
    data = attribute(1, count.bytes.to_bytes(8, "big")) + attribute(2, count.packets.to_bytes(8, "big"))
    return attribute(1, attribute(1, b"counter\0") + attribute(2, data))


def _string(text: str) -> bytes:
    return text.encode() + b"\0"


def _expressions(statement: Statement) -> Iterator[tuple[str, list[Any]]]:
    match statement:
        case Match(field, value, mask, equal):
            yield _load(field, 1)
            if mask is not None:
                yield (
                    "bitwise",
                    [
                        ("NFTA_BITWISE_SREG", 1),
                        ("NFTA_BITWISE_DREG", 1),
                        ("NFTA_BITWISE_LEN", field.width),
                        ("NFTA_BITWISE_MASK", _value(field.pack(mask))),
                        ("NFTA_BITWISE_XOR", _value(field.pack(0))),
                    ],
                )
            data = _value(field.pack(value))
            yield "cmp", [("NFTA_CMP_SREG", 1), ("NFTA_CMP_OP", 0 if equal else 1), ("NFTA_CMP_DATA", data)]
        case Member(fields, name, inside):
            register = FIRST_REGISTER
            for field in fields:
                yield _load(field, register)
                register += -(-field.width // 4)
            flags = [] if inside else [("NFTA_LOOKUP_FLAGS", {"NFT_LOOKUP_F_INV"})]
            yield "lookup", [("NFTA_LOOKUP_SET", name), ("NFTA_LOOKUP_SREG", FIRST_REGISTER), *flags]
        case Dispatch(field, name):
            yield _load(field, 1)
            yield "lookup", [("NFTA_LOOKUP_SET", name), ("NFTA_LOOKUP_SREG", 1), ("NFTA_LOOKUP_DREG", 0)]
        case Verdict(code, chain):
            target = [("NFTA_VERDICT_CHAIN", chain)] if chain else []
            verdict = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", int(code)), *target]})]}
            yield "immediate", [("NFTA_IMMEDIATE_DREG", 0), ("NFTA_IMMEDIATE_DATA", verdict)]
        case Redirect(port):
            yield _immediate(port.to_bytes(2, "big"))
            yield "redir", [("NFTA_REDIR_REG_PROTO_MIN", 1)]
        case Reset():
            yield "reject", [("NFTA_REJECT_TYPE", 1), ("NFTA_REJECT_ICMP_CODE", 0)]
        case PutMark(value, connection):
            yield _immediate(value.to_bytes(4, sys.byteorder))
            yield (
                ("ct", [("NFTA_CT_KEY", 3), ("NFTA_CT_SREG", 1)])
                if connection
                else (
                    "meta",
                    [("NFTA_META_KEY", 3), ("NFTA_META_SREG", 1)],
                )
            )
        case PutLabel(number):
            yield _immediate((1 << number).to_bytes(16, sys.byteorder))
            yield "ct", [("NFTA_CT_KEY", 13), ("NFTA_CT_SREG", 1)]
        case _:
            raise ValueError(f"{statement} is no statement of a plan")


def _load(field: Field, register: int) -> tuple[str, list[Any]]:
    match field.kind:
        case "meta":
            return "meta", [("NFTA_META_KEY", field.number), ("NFTA_META_DREG", register)]
        case "ct":
            return "ct", [("NFTA_CT_KEY", field.number), ("NFTA_CT_DREG", register)]
        case "ct original" | "ct reply":
            direction = ("NFTA_CT_DIRECTION", ORIGINAL if field.kind == "ct original" else REPLY)
            return "ct", [("NFTA_CT_KEY", field.number), ("NFTA_CT_DREG", register), direction]
        case "fib":
            # 2 is NFTA_FIB_F_DADDR.
            flags = ("NFTA_FIB_FLAGS", 2)
            return "fib", [("NFTA_FIB_RESULT", field.number), ("NFTA_FIB_DREG", register), flags]
        case "socket":
            level = [("NFTA_SOCKET_LEVEL", field.level)] if field.level else []
            return "socket", [("NFTA_SOCKET_KEY", field.number), ("NFTA_SOCKET_DREG", register), *level]
        case "link" | "network" | "transport":
            return "payload", [
                ("NFTA_PAYLOAD_DREG", register),
                ("NFTA_PAYLOAD_BASE", HEADERS.index(field.kind)),
                ("NFTA_PAYLOAD_OFFSET", field.number),
                ("NFTA_PAYLOAD_LEN", field.width),
            ]
    raise ValueError(f"{field.text} is no field of a plan")


def _value(data: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def _immediate(data: bytes) -> tuple[str, list[Any]]:
    return "immediate", [("NFTA_IMMEDIATE_DREG", 1), ("NFTA_IMMEDIATE_DATA", _value(data))]


def _element(element: bytes) -> bytes:
    """NFTA_LIST_ELEM { NFTA_SET_ELEM_KEY { NFTA_DATA_VALUE } }, each attribute padded to four bytes."""
    size = len(element)
    padding = bytes(-size % 4)
    return struct.pack("=HHHHHH", 12 + size + len(padding), 0x8001, 8 + size + len(padding), 0x8001, 4 + size, 1) + (
        element + padding
    )


def _range(element: bytes) -> bytes:
    """A range: its first value, and as the mark of its end the value behind its last. One that reaches the highest
    value there is has no such mark."""
    size = len(element) // 2
    end = int.from_bytes(element[size:]) + 1
    if end >> 8 * size:
        return _element(element[:size])
    mark = attribute(1, attribute(1, end.to_bytes(size))) + attribute(3, _INTERVAL_END)
    return _element(element[:size]) + attribute(1, mark)


def _passing(element: bytes, seconds: float) -> bytes:
    """An element that goes by itself; the kernel counts milliseconds."""
    timeout = attribute(4, max(1, round(1000 * seconds)).to_bytes(8, "big"))
    return attribute(1, attribute(1, attribute(1, element)) + timeout)


def _packers(key: Key, elements: Iterable[bytes], seconds: float | None = None) -> Iterator[bytes]:
    if seconds is not None and key.passing:
        return (_passing(element, seconds) for element in elements)
    return map(_range if key.ranges else _element, elements)


def _width(key: Key) -> int:
    """The most that one packed element takes."""
    one = key.width + 15
    return 2 * one + 8 if key.ranges else one


def _verdict_element(element: bytes, verdict: Verdict) -> bytes:
    """As `_element`, with NFTA_SET_ELEM_DATA { NFTA_DATA_VERDICT { CODE, CHAIN } } behind the key."""
    code = attribute(1, struct.pack("!i", verdict.code))
    target = attribute(2, _string(verdict.chain)) if verdict.chain else b""
    key, data = attribute(1, attribute(1, element)), attribute(2, attribute(2, code + target))
    return attribute(1, key + data)


def _elements(table: str, name: str, kind: int, flags: int, packed: Iterable[bytes], width: int) -> Iterator[Message]:
    """As many messages as it takes: an attribute cannot be longer than 64 KiB, and `width` is the most one needs."""
    rest = iter(packed)
    where = attribute(1, _string(table)) + attribute(2, _string(name))
    verb = "elements" if kind == nft.NFT_MSG_NEWSETELEM else "removal of elements"
    while chunk := b"".join(islice(rest, 60_000 // width)):
        yield Message(_frame(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, where + attribute(3, chunk)), f"{verb} of {name}")


def _frame(kind: int, flags: int = NLM_F_REQUEST, payload: bytes = b"") -> bytes:
    """Netlink header, nfnetlink header, payload. The subsystem stands in the latter for batch frames only."""
    family, subsystem = (0, NFNL_SUBSYS_NFTABLES) if kind in (BATCH_BEGIN, BATCH_END) else (INET, 0)
    return (
        struct.pack("=IHHII", 20 + len(payload), kind, flags, 0, 0)
        + struct.pack("!BBH", family, 0, subsystem)
        + payload
    )


def _message(form: Any, kind: int, flags: int, attributes: list[Any], about: str) -> Message:
    message = form()
    message["attrs"] = attributes
    message["nfgen_family"] = INET
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | kind
    message["header"]["flags"] = flags
    message.encode()
    return Message(bytes(message.data), about)
