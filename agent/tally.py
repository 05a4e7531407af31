"""What all workers of a node hold of each account, added up: a table in memory that they share.

Each worker has a row that nobody else writes, so that there is nothing to lock; it reads the others'. Two workers that
look at the same moment may both grant the last of a limit: it can be passed by one for each further worker.

A row is a hash table of (account, connections, descriptors), found by the account's number and the places behind it. An
account keeps its place; when no place is left, the row is begun anew.
"""

import hashlib
import mmap
import os

PLACES = 2**11
"""Of a row: twice what a node's capture ports allow of workloads, for either direction."""
_WIDTH = 3  # numbers of eight bytes for each place
ROW = PLACES * _WIDTH * 8
"""Bytes of a row; only what is written takes memory."""


def make(rows: int) -> int:
    """An empty table, as a file descriptor that the caller closes. OSError."""
    fd = os.memfd_create("culvert-tally", os.MFD_CLOEXEC)
    os.ftruncate(fd, rows * ROW)
    return fd


def clear(fd: int, row: int) -> None:
    """A row whose worker has died holds nothing any more."""
    os.pwrite(fd, bytes(ROW), row * ROW)


def number(name: str) -> int:
    """An account's number, the same in every worker; never 0, which marks a place as free."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) or 1


class Tally:
    """The table at `fd`, which is closed here, as the worker of `row` has it; its own row is empty at first."""

    def __init__(self, fd: int, row: int, rows: int) -> None:
        try:
            self._memory = mmap.mmap(fd, rows * ROW)
        finally:
            os.close(fd)
        self._cells = memoryview(self._memory).cast("Q")
        self._own, self._others = row, [r for r in range(rows) if r != row]
        self._places: dict[int, int] = {}
        self._clear()

    def put(self, account: int, connections: int, descriptors: int) -> None:
        """What this worker holds of it now."""
        cells, place = self._cells, self._places.get(account)
        if place is None:
            if not (connections or descriptors):
                return
            place = self._take_place(account)
        cells[place + 1], cells[place + 2] = connections, descriptors

    def others(self, account: int) -> tuple[int, int]:
        """(connections, descriptors) that the other workers hold of it."""
        connections = descriptors = 0
        cells = self._cells
        for row in self._others:
            place, found = self._find(row, account)
            if found:
                connections += cells[place + 1]
                descriptors += cells[place + 2]
        return connections, descriptors

    def _find(self, row: int, account: int) -> tuple[int, bool]:
        """The account's place in a row, or the first free one where it would be; -1 where there is none."""
        cells, first = self._cells, row * PLACES
        for step in range(PLACES):
            place = (first + (account + step) % PLACES) * _WIDTH
            there = cells[place]
            if there == account:
                return place, True
            if not there:
                return place, False
        return -1, False

    def _take_place(self, account: int) -> int:
        place, _ = self._find(self._own, account)
        if place < 0:
            self._clear()  # accounts of those who are gone fill it; the others' come back with their next connection
            place, _ = self._find(self._own, account)
        self._cells[place] = account
        self._places[account] = place
        return place

    def _clear(self) -> None:
        self._places.clear()
        start = self._own * ROW
        self._memory[start : start + ROW] = bytes(ROW)
