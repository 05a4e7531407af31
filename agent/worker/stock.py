"""Sockets made inside other network namespaces, kept in stock.

A socket belongs for ever to the namespace it was made in, and entering one needs CAP_SYS_ADMIN, which no worker has. So
the supervisor makes them ahead, and the worker asks for more when half are gone.
"""

import socket
from collections import deque
from collections.abc import Callable

FULL = 64
"""Sockets asked for at once, for each workload and address family: a burst of that many connects waits for nothing."""


class Stocks:
    """By workload (namespace/name) and address family. Owns the sockets until they are taken."""

    def __init__(self, want: Callable[[str, int, int], bool]) -> None:
        """`want(workload, family, count)` asks the supervisor for more; False: not now, ask again when one is taken."""
        self._want = want
        self._shelves: dict[tuple[str, int], deque[socket.socket]] = {}
        self._ordered: dict[tuple[str, int], int] = {}
        self._declined: dict[tuple[str, int], None] = {}
        self._names: frozenset[str] = frozenset()

    def serve(self, workloads: list[str]) -> None:
        """From now on these live in namespaces of their own, and no others."""
        self._names = frozenset(workloads)
        for shelf in [s for s in self._shelves if s[0] not in self._names]:
            for sock in self._shelves.pop(shelf):
                sock.close()
        # Nothing comes of what was ordered for those that are gone: should they come back, it is ordered anew.
        self._ordered = {s: count for s, count in self._ordered.items() if s[0] in self._names}
        self._declined = {s: None for s in self._declined if s[0] in self._names}
        for name in workloads:
            for family in (socket.AF_INET, socket.AF_INET6):
                self._order((name, family))

    def needed(self, workload: str) -> bool:
        """Whether the workload can be dialled from inside its namespace only."""
        return workload in self._names

    def add(self, workload: str, family: int, fds: list[int]) -> None:
        """Fresh sockets from the supervisor."""
        socks = [socket.socket(fileno=fd) for fd in fds]
        shelf = (workload, family)
        if workload not in self._names:
            for sock in socks:
                sock.close()
            return
        self._arrived(shelf, len(socks))
        for sock in socks:
            sock.setblocking(False)
        self._shelves.setdefault(shelf, deque()).extend(socks)

    def decline(self, workload: str, family: int, count: int) -> None:
        """So many came that there is no room for."""
        if workload in self._names:
            self._arrived((workload, family), count)
            self._declined[workload, family] = None

    def resume(self) -> None:
        """There is room again; to be called now and then. Of what was declined one order is given at a time: there may
        be no room for more."""
        for shelf in self._declined:
            del self._declined[shelf]
            self._order(shelf)
            return

    def take(self, workload: str, family: int) -> socket.socket | None:
        """A socket to dial with; None if the workload has no namespace of its own, or the shelf is empty just now."""
        if workload not in self._names:
            return None
        shelf = self._shelves.get((workload, family))
        sock = shelf.popleft() if shelf else None
        self._order((workload, family))
        return sock

    def _arrived(self, shelf: tuple[str, int], count: int) -> None:
        self._ordered[shelf] = max(0, self._ordered.get(shelf, 0) - count)

    def _order(self, shelf: tuple[str, int]) -> None:
        if shelf in self._declined:
            return
        have = len(self._shelves.get(shelf, ())) + self._ordered.get(shelf, 0)
        if have <= FULL // 2 and self._want(*shelf, FULL - have):
            self._ordered[shelf] = self._ordered.get(shelf, 0) + FULL - have
