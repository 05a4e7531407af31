"""Busy polling: whether to look again for a moment instead of going to sleep.

Whoever sleeps has to be woken: that costs the other side an interrupt and this one a cold core, on a virtual machine
more time than all the rest of what a small message needs. Looking again burns the core instead, so it is done only
where it pays: as long as nearly every look soon finds something. One that finds nothing costs as much credit as eight
that do give. Without credit the process sleeps, and looks again after so many sleeps, each time twice as many.
"""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_MOST = 64  # credit
_MISS = 8
_PAUSE_LEAST, _PAUSE_MOST = 8, 1024  # sleeps


class BusyPoll:
    """`longest` is in seconds; 0: never look, always sleep."""

    __slots__ = ("_clock", "_credit", "_longest", "_pause", "_sleeps")

    def __init__(self, longest: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest, self._clock = longest, clock
        self._credit, self._pause, self._sleeps = _MISS, _PAUSE_LEAST, 0

    def look(self, poll: Callable[[], list[T]]) -> list[T]:
        """What `poll` gives, at once or soon; nothing where it is better to sleep now."""
        if not self._longest:
            return []
        if self._sleeps:
            self._sleeps -= 1
            return []
        if found := poll():
            return found
        began = self._clock()
        while (waited := self._clock() - began) < self._longest:
            os.sched_yield()
            if found := poll():
                # Looking for long is not much better than sleeping.
                self._settle(1 if waited * 2 < self._longest else -1)
                return found
        self._settle(-_MISS)
        return []

    def _settle(self, change: int) -> None:
        self._credit = min(self._credit + change, _MOST)
        if self._credit == _MOST:
            self._pause = _PAUSE_LEAST
        elif self._credit <= 0:
            self._sleeps, self._credit = self._pause, _MISS
            self._pause = min(self._pause * 2, _PAUSE_MOST)
