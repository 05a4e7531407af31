"""Policy routing for borrowed source addresses: what carries the spoof mark is delivered on this machine.

A rule and a route for each IP version, recognised by their protocol number and removed exactly. No sysctl is touched.
Header layouts are those of linux/fib_rules.h and linux/rtnetlink.h.
"""

import errno
import socket
import struct
from collections.abc import Iterator

from redirect.desired import Marks
from redirect.frames import attribute, attributes
from redirect.netlink import Netlink, Refused
from redirect.ruleset import LOOPBACK

NEW_ROUTE, DEL_ROUTE, GET_ROUTE = 24, 25, 26
NEW_RULE, DEL_RULE, GET_RULE = 32, 33, 34
CREATE, EXCLUSIVE = 0x400, 0x200
PROTOCOL = 199
"""Author of our rules and routes, in the range left to routing daemons; `ip rule` and `ip route` print it as proto."""
FAMILIES = (socket.AF_INET, socket.AF_INET6)
_ABSENT = (errno.ENOENT, errno.ESRCH)
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES)
"""How kernels say that IPv6 is not built in, or is switched off on loopback."""


def install(netlink: Netlink, marks: Marks) -> None:
    """Add what is missing. Raises Refused; where IPv6 is switched off there is nothing to add for it."""
    for family in FAMILIES:
        try:
            _ask(netlink, NEW_ROUTE, _route(family, marks), _about("route", family), CREATE | EXCLUSIVE, errno.EEXIST)
            _ask(netlink, NEW_RULE, _rule(family, marks), _about("rule", family), CREATE | EXCLUSIVE, errno.EEXIST)
        except Refused as refused:
            if family == socket.AF_INET or refused.code not in _NO_IPV6:
                raise


def remove(netlink: Netlink, marks: Marks) -> None:
    """Take out what `install` added, now or with other numbers before a setting was changed, and nothing else."""
    remove_others(netlink, marks)
    for family in FAMILIES:
        fine = (*_ABSENT, *(_NO_IPV6 if family == socket.AF_INET6 else ()))
        _ask(netlink, DEL_RULE, _rule(family, marks), _about("rule", family), 0, *fine)
        _ask(netlink, DEL_ROUTE, _route(family, marks), _about("route", family), 0, *fine)


def remove_others(netlink: Netlink, marks: Marks) -> None:
    """Take out what `install` added with other numbers. They stand in our rules; the protocol number tells those."""
    for family in FAMILIES:
        for row in listed(netlink, GET_RULE, family):
            found = dict(attributes(row[12:]))
            if found.get(21) != bytes([PROTOCOL]) or _alike(_RULE_KEYS, row, _rule(family, marks)):
                continue
            numbers = {key: struct.unpack("=I", found.get(key, bytes(4)))[0] for key in _RULE_KEYS}
            old = Marks(0, numbers[10], numbers[16], numbers[15], numbers[6])
            _ask(netlink, DEL_RULE, _rule(family, old), _about("rule", family), 0, *_ABSENT)
            if old.route_table != marks.route_table:
                _ask(netlink, DEL_ROUTE, _route(family, old), _about("route", family), 0, *_ABSENT)


def missing(netlink: Netlink, marks: Marks) -> Iterator[str]:
    """What `install` would add, in words."""
    for family in FAMILIES:
        routes = listed(netlink, GET_ROUTE, family)
        if family == socket.AF_INET6 and not routes:
            # Where IPv6 is on, loopback has its own.
            return
        if not any(_alike(_RULE_KEYS, row, _rule(family, marks)) for row in listed(netlink, GET_RULE, family)):
            yield f"{_about('rule', family)} for mark {marks.spoof:#x} is missing"
        if not any(_alike(_ROUTE_KEYS, row, _route(family, marks)) for row in routes):
            yield f"{_about('route', family)} in table {marks.route_table} is missing"


_RULE_KEYS = (6, 10, 15, 16)
_ROUTE_KEYS = (4, 15)


def _rule(family: int, marks: Marks) -> bytes:
    """fib_rule_hdr with FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL; action 1 looks a table up."""
    return (
        struct.pack("=8BI", family, 0, 0, 0, 0, 0, 0, 1, 0)
        + _u32(6, marks.rule_priority)
        + _u32(10, marks.spoof & marks.mask)
        + _u32(15, marks.route_table)
        + _u32(16, marks.mask)
        + attribute(21, bytes([PROTOCOL]))
    )


def _route(family: int, marks: Marks) -> bytes:
    """rtmsg with RTA_OIF and RTA_TABLE: everything (prefix length 0) is local (type 2) within the host (scope 254)."""
    header = struct.pack("=8BI", family, 0, 0, 0, 0, PROTOCOL, 254, 2, 0)
    return header + _u32(4, LOOPBACK) + _u32(15, marks.route_table)


def _u32(number: int, value: int) -> bytes:
    return attribute(number, struct.pack("=I", value))


def _about(what: str, family: int) -> str:
    return f"the {'IPv6' if family == socket.AF_INET6 else 'IPv4'} routing {what}"


def _ask(netlink: Netlink, kind: int, payload: bytes, about: str, flags: int, *welcome: int) -> None:
    try:
        netlink.ask(kind, payload, about, flags)
    except Refused as refused:
        if refused.code not in welcome:
            raise


def listed(netlink: Netlink, kind: int, family: int) -> list[bytes]:
    """All rules or routes of one IP version, whoever's they are. Refused."""
    rows = netlink.whole(kind, struct.pack("=8BI", family, *[0] * 8), "a listing of routing")
    # A kernel that lacks a family answers for all of them.
    return [row for row in rows if row[0] == family]


def _alike(keys: tuple[int, ...], row: bytes, wanted: bytes) -> bool:
    has, wants = dict(attributes(row[12:])), dict(attributes(wanted[12:]))
    return all(has.get(key) == wants[key] for key in keys)
