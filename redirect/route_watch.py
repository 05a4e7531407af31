"""News of routing rules and routes of ours that others take away, as network managers do that know only their own."""

import errno

from redirect.frames import Frame, attributes
from redirect.netlink import ROUTE, Netlink
from redirect.routing import DEL_ROUTE, DEL_RULE, PROTOCOL

_GROUPS = (7, 8, 11, 19)
"""RTNLGRP_IPV4_ROUTE, _IPV4_RULE, _IPV6_ROUTE and _IPV6_RULE."""
_RULE_PROTOCOL = 21


class RouteWatch:
    """Readable (`fileno`) when routing changed. `foreign` reads; whoever made the watch closes it. `author` is the
    netlink port of our own changes."""

    def __init__(self, author: int) -> None:
        self._netlink = Netlink(ROUTE, groups=sum(1 << (group - 1) for group in _GROUPS))
        self._author = author

    def fileno(self) -> int:
        return self._netlink.fileno()

    def close(self) -> None:
        self._netlink.close()

    def foreign(self) -> bool:
        """Whether others took something of ours since the last call, or may have: where routes change faster than they
        are read, news are lost."""
        found = False
        while True:
            try:
                for frame in self._netlink.drain():  # to the end, whatever is found
                    found |= self._ours(frame)
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True

    def _ours(self, frame: Frame) -> bool:
        if frame.author == self._author:
            return False
        if frame.kind == DEL_ROUTE:
            return frame.payload[5] == PROTOCOL  # of an rtmsg
        return frame.kind == DEL_RULE and dict(attributes(frame.payload[12:])).get(_RULE_PROTOCOL) == bytes([PROTOCOL])
