"""The interfaces of a network namespace, and the news that it has lost its last, as a container's does that ends."""

import errno
import struct

from redirect.explain import explain
from redirect.frames import attributes
from redirect.netlink import ROUTE, Netlink, Refused

_GET_LINK = 18
_GROUP = 1
"""RTNLGRP_LINK."""
_ETHERNET, _UP = 1, 1
"""ARPHRD_ETHER and IFF_UP: what leads out of a container. Loopback is of another type, and so are most of the ends of
tunnels that the kernel puts into each namespace; of gretap0 and erspan0, which are not, nobody makes use."""
_HEADER = 16
"""Bytes of an ifinfomsg, before its attributes."""
_INFO, _PEERS_NAMESPACE, _KIND = 18, 37, 1
"""IFLA_LINKINFO, IFLA_LINK_NETNSID, and of the former IFLA_INFO_KIND."""


def listed(netlink: Netlink) -> list[bytes]:
    """Each as an ifinfomsg with its attributes. Refused."""
    return netlink.whole(_GET_LINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0), "a listing of interfaces")


class LinkWatch:
    """Readable (`fileno`) when interfaces came or went; to be made in the namespace, and closed by who made it."""

    def __init__(self) -> None:
        self._news = Netlink(ROUTE, groups=1 << (_GROUP - 1))
        self._led_out = False
        try:
            self._netlink = Netlink(ROUTE)
            try:
                self.cut_off()
            except BaseException:
                self._netlink.close()
                raise
        except BaseException:
            self._news.close()
            raise

    def fileno(self) -> int:
        return self._news.fileno()

    def close(self) -> None:
        self._news.close()
        self._netlink.close()

    def cut_off(self) -> bool:
        """Whether no interface leads out any more, where one did. Reads the news. Blocking; CaptureError or OSError."""
        try:
            for _ in self._news.drain():
                pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        try:
            leads_out = any(map(_leads_out, listed(self._netlink)))
        except Refused as refused:
            raise explain(refused) from refused
        self._led_out |= leads_out
        return self._led_out and not leads_out


def _leads_out(row: bytes) -> bool:
    kind, _, flags = struct.unpack_from("=HiI", row, 2)
    if kind != _ETHERNET or not flags & _UP:
        return False
    said = dict(attributes(row[_HEADER:]))
    named = dict(attributes(said.get(_INFO, b""))).get(_KIND, b"").rstrip(b"\0")
    if named == b"veth":
        return _PEERS_NAMESPACE in said  # else both ends are here
    return named != b"bridge"  # it leads where its ports do
