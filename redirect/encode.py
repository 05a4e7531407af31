"""Ruleset -> netlink messages. Pure: bytes only, no socket.

Tables, chains, sets and rules are built with pyroute2's message classes, each message from fresh values, because
encoding one twice corrupts it. Elements are packed by hand: a mesh has 100,000 of them, and a packed one costs a
microsecond where an object costs thirty. Expressions are those of linux/netfilter/nf_tables.h.
"""

import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pyroute2.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nfnetlink import nftsocket as nft

from redirect.frames import attribute
from redirect.render import render_rule
from redirect.ruleset import (
    Chain,
    Count,
    Dispatch,
    Field,
    Key,
    Match,
    Member,
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
VERDICT_TYPE = 0xFFFFFF00
"""NFT_DATA_VERDICT, the data type of maps of verdicts."""
FIRST_REGISTER = 8
"""NFT_REG32_00; the kernel's registers are four bytes wide, and the older names 1 to 4 stand for four of them each."""
_TABLE_COMMENT = "Culvert's capture; `nft delete table inet culvert` removes it"


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


def replace_table(ruleset: Ruleset) -> list[Message]:
    """The table afresh, whatever was in it. Adding it first lets the deletion succeed where there was none."""
    new = _message(nft.nft_table_msg, nft.NFT_MSG_NEWTABLE, ADD, _table(ruleset.table), f"table {ruleset.table}")
    return [*remove_table(ruleset.table), new, *_contents(ruleset)]


def remove_table(table: str) -> list[Message]:
    """No table of this name afterwards, whether there was one or not."""
    return [
        _message(nft.nft_table_msg, nft.NFT_MSG_NEWTABLE, ADD, _table(table), f"table {table}"),
        _message(nft.nft_table_msg, nft.NFT_MSG_DELTABLE, NLM_F_REQUEST, _name(table), f"deletion of table {table}"),
    ]


def change_elements(table: str, key: Key, name: str, gone: Iterable[bytes], new: Iterable[bytes]) -> list[Message]:
    """Elements of one set taken out and put in; taking out one that is not there fails."""
    return [
        *_elements(table, name, nft.NFT_MSG_DELSETELEM, NLM_F_REQUEST, map(_element, gone), key.width + 12),
        *_elements(table, name, nft.NFT_MSG_NEWSETELEM, ADD, map(_element, new), key.width + 12),
    ]


def _name(table: str) -> list[Any]:
    return [("NFTA_TABLE_NAME", table)]


def _table(table: str) -> list[Any]:
    return [*_name(table), ("NFTA_TABLE_USERDATA", _TABLE_COMMENT)]


def _contents(ruleset: Ruleset) -> Iterator[Message]:
    table = ruleset.table
    groups: tuple[Set | VerdictMap, ...] = (*ruleset.sets, *ruleset.maps)
    for number, group in enumerate(groups, 1):
        yield _set(table, group, number)
    # Verdicts name chains, so that these come before the elements of maps.
    for chain in ruleset.chains:
        yield _chain(table, chain)
    for group in groups:
        assert group.key is not None
        if isinstance(group, Set):
            packed, width = (_element(e) for e in group.elements), group.key.width + 12
        else:
            packed, width = (_verdict_element(e, v) for e, v in group.elements), group.key.width + 300
        yield from _elements(table, group.name, nft.NFT_MSG_NEWSETELEM, ADD, packed, width)
    for chain in ruleset.chains:
        for number, rule in enumerate(chain.rules, 1):
            yield _rule(table, chain.name, number, rule)


def _set(table: str, group: Set | VerdictMap, number: int) -> Message:
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
        what = "set"
    return _message(nft.nft_set_msg, nft.NFT_MSG_NEWSET, ADD, attributes, f"{what} {group.name} ({key.text})")


def _chain(table: str, chain: Chain) -> Message:
    attributes: list[Any] = [("NFTA_CHAIN_TABLE", table), ("NFTA_CHAIN_NAME", chain.name)]
    if base := chain.base:
        place = [("NFTA_HOOK_HOOKNUM", int(base.hook)), ("NFTA_HOOK_PRIORITY", base.priority)]
        attributes += [("NFTA_CHAIN_TYPE", base.type), ("NFTA_CHAIN_HOOK", {"attrs": place})]
    return _message(nft.nft_chain_msg, nft.NFT_MSG_NEWCHAIN, ADD, attributes, f"chain {chain.name}")


def _rule(table: str, chain: str, number: int, rule: Rule) -> Message:
    expressions = [
        {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": attributes})]}
        for statement in rule.statements
        for name, attributes in _expressions(statement)
    ]
    attributes: list[Any] = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", expressions),
    ]
    if rule.comment:
        attributes.append(("NFTA_RULE_USERDATA", rule.comment))
    about = f"rule {number} of chain {chain} ({render_rule(rule)})"
    return _message(_RuleMessage, nft.NFT_MSG_NEWRULE, ADD | NLM_F_APPEND, attributes, about)


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
        case Count(packets, octets):
            yield "counter", [("NFTA_COUNTER_BYTES", octets), ("NFTA_COUNTER_PACKETS", packets)]
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
        case _:
            raise ValueError(f"{statement} is no statement of a plan")


def _load(field: Field, register: int) -> tuple[str, list[Any]]:
    match field.kind:
        case "meta":
            return "meta", [("NFTA_META_KEY", field.number), ("NFTA_META_DREG", register)]
        case "ct":
            return "ct", [("NFTA_CT_KEY", field.number), ("NFTA_CT_DREG", register)]
        case "fib":
            # 2 is NFTA_FIB_F_DADDR.
            flags = ("NFTA_FIB_FLAGS", 2)
            return "fib", [("NFTA_FIB_RESULT", field.number), ("NFTA_FIB_DREG", register), flags]
        case "socket":
            level = [("NFTA_SOCKET_LEVEL", field.level)] if field.level else []
            return "socket", [("NFTA_SOCKET_KEY", field.number), ("NFTA_SOCKET_DREG", register), *level]
        case "network" | "transport":
            return "payload", [
                ("NFTA_PAYLOAD_DREG", register),
                ("NFTA_PAYLOAD_BASE", 1 if field.kind == "network" else 2),
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


def _verdict_element(element: bytes, verdict: Verdict) -> bytes:
    """As `_element`, with NFTA_SET_ELEM_DATA { NFTA_DATA_VERDICT { CODE, CHAIN } } behind the key."""
    code = attribute(1, struct.pack("!i", verdict.code))
    target = attribute(2, verdict.chain.encode() + b"\0") if verdict.chain else b""
    key, data = attribute(1, attribute(1, element)), attribute(2, attribute(2, code + target))
    return attribute(1, key + data)


def _elements(table: str, name: str, kind: int, flags: int, packed: Iterable[bytes], width: int) -> Iterator[Message]:
    """As many messages as it takes: an attribute cannot be longer than 64 KiB, and `width` is the most one needs."""
    rest = iter(packed)
    where = attribute(1, table.encode() + b"\0") + attribute(2, name.encode() + b"\0")
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
