"""News of changes that others make to our table, such as `nft flush ruleset`."""

import errno
from collections.abc import Callable

from redirect.encode import INET
from redirect.frames import Frame, attributes
from redirect.netlink import NETFILTER, Netlink

GROUP = 7
"""NFNLGRP_NFTABLES."""
SUBSYSTEM = 10
ROOM = 16 * 1024 * 1024
"""Receive buffer, bytes: 100,000 elements replaced are news, too, and ours come back to us."""
_KINDS = {
    0: "table added or changed",
    2: "table deleted",
    3: "chain added or changed",
    5: "chain deleted",
    6: "rule added",
    8: "rule deleted",
    9: "set added",
    11: "set deleted",
    12: "elements added",
    14: "elements deleted",
}


class Watch:
    """Readable (`fileno`) when something changed. `foreign` reads; whoever made the watch closes it.

    `author` is the netlink port of our own changes. `unchanged` says whether the last change of all was ours: it is
    asked when news were lost because more came than fits.
    """

    def __init__(self, table: str, author: int, unchanged: Callable[[], bool], room: int = ROOM) -> None:
        self._netlink = Netlink(NETFILTER, groups=1 << (GROUP - 1))
        self._netlink.make_room_for_news(room)
        self._table = table
        self._author = author
        self._unchanged = unchanged

    def fileno(self) -> int:
        return self._netlink.fileno()

    def close(self) -> None:
        self._netlink.close()

    def foreign(self) -> list[str]:
        """What others did to our table since the last call, each kind once; empty for changes of ours and elsewhere.

        Call it where blocking is fine: when news were lost it waits for a change of ours to be over.
        """
        found: dict[str, None] = {}
        lost = False
        while True:
            try:
                found.update((text, None) for frame in self._netlink.drain() if (text := self._ours(frame)))
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
        if lost and not self._unchanged():
            found["news were lost"] = None
        return list(found)

    def _ours(self, frame: Frame) -> str:
        subsystem, kind = divmod(frame.kind, 256)
        if subsystem != SUBSYSTEM or kind not in _KINDS or frame.author == self._author:
            return ""
        # Whatever the object is: attribute 1 is the table's name.
        name = dict(attributes(frame.payload[4:])).get(1, b"").rstrip(b"\0").decode(errors="replace")
        return _KINDS[kind] if frame.payload[0] == INET and name == self._table else ""
