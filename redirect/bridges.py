"""On which bridges of this machine's network namespace an address lives, as the kernel routes it. Blocking."""

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from redirect.explain import explain
from redirect.frames import attribute, attributes
from redirect.links import listed
from redirect.netlink import ROUTE, Netlink, Refused
from redirect.routing import GET_ROUTE

_DESTINATION, _OUT, _GATEWAY = 1, 4, 5
"""RTA_DST, RTA_OIF and RTA_GATEWAY."""
_NAME, _MASTER, _INFO, _KIND = 3, 10, 18, 1
"""IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO and in the latter IFLA_INFO_KIND."""
_NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES)


@dataclass(frozen=True, slots=True)
class Link:
    """An interface: `master` is the number of the bridge that it is a port of, or 0."""

    name: str
    kind: str
    master: int = 0


@dataclass(frozen=True, slots=True)
class Bridges:
    """The bridge for each address that lives on one of containers alone, and a sentence for each other bridge."""

    of: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def bridges(addresses: Iterable[str]) -> Bridges:
    """Where these are. CaptureError or OSError."""
    netlink = Netlink(ROUTE)
    try:
        links = _links(netlink)
        found, problems = dict[str, str](), set[str]()
        for address in addresses:
            number = _towards(netlink, address)
            link = links.get(number)
            if link is None or link.kind != "bridge":
                continue
            # Everybody beyond another port, a network card say, would be held as well.
            others = sorted(each.name for each in links.values() if each.master == number and each.kind != "veth")
            if others:
                problems.add(
                    f"bridge {link.name}: {', '.join(others[:3])} may lead to more than containers, so that a "
                    "container there that restarts may speak in clear for its first moments"
                )
            else:
                found[address] = link.name
    except Refused as refused:
        raise explain(refused) from refused
    finally:
        netlink.close()
    return Bridges(found, tuple(sorted(problems)))


def _links(netlink: Netlink) -> dict[int, Link]:
    return dict(map(_link, listed(netlink)))


def _link(row: bytes) -> tuple[int, Link]:
    """From ifinfomsg and its attributes."""
    (number,) = struct.unpack_from("=i", row, 4)
    found = dict(attributes(row[16:]))
    kind = dict(attributes(found.get(_INFO, b""))).get(_KIND, b"")
    (master,) = struct.unpack("=I", found.get(_MASTER, bytes(4)))
    return number, Link(_text(found.get(_NAME, b"")), _text(kind), master)


def _towards(netlink: Netlink, address: str) -> int:
    """The interface behind which the address is a neighbour; 0 if there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    question = struct.pack("=8BI", family, 8 * len(packed), *[0] * 6, 0) + attribute(_DESTINATION, packed)
    try:
        answer = netlink.ask(GET_ROUTE, question, f"a route to {address}")
    except Refused as refused:
        if refused.code in _NOWHERE:
            return 0
        raise
    found = dict(attributes((answer or bytes(12))[12:]))
    return 0 if _GATEWAY in found else int.from_bytes(found.get(_OUT, b""), sys.byteorder)


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")
