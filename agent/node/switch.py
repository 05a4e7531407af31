"""The operator's switch for capture: off, on, or on for a trial that ends by itself unless it is confirmed.

Who ends a trial: the kernel, because the table's own timer runs out (`Desired.until`) whoever is dead by then; the
agent, which then takes the table away; and a restart, because until it is confirmed the disk says `off`. Time is that
of the clock that runs since boot, and a trial of another boot is over.
"""

import time
from pathlib import Path

import trio

from agent.node.files import StateError
from agent.node.state import Attempt, State

LOOK = 0.5
"""Seconds between looks at the clock, which goes on while the machine sleeps and trio's does not."""


def boot_seconds() -> float:
    """The clock that trials go by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """This boot and no other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Switch:
    """As it stands on disk at first. Blocking but for `over`; calls come one at a time."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._changed = trio.Event()
        self.off = state.capture_off()
        self.until: float | None = None
        """When the trial ends, if there is one."""
        attempt = state.attempt()
        if self.off and attempt and attempt.boot == boot_id() and attempt.until > boot_seconds():
            self.off, self.until = False, attempt.until

    @property
    def left(self) -> float:
        """Seconds until the trial ends; 0 without one."""
        return max(0.0, self.until - boot_seconds()) if self.until is not None else 0.0

    def turn(self, off: bool) -> None:
        """Off or on, for good. StateError; then nothing has changed."""
        self._state.set_capture_off(off)
        self._forget()
        self.off = off

    def attempt(self, seconds: float) -> None:
        """On for so long; the disk knows before anything follows. StateError; then nothing has changed."""
        self._state.set_capture_off(True)
        until = boot_seconds() + seconds
        self._state.save_attempt(Attempt(boot_id(), until))
        self.off, self.until = False, until

    def end(self) -> None:
        """The trial is over: off again, whatever the disk says."""
        self.off = True
        self._forget()

    def _forget(self) -> None:
        self.until = None
        try:
            self._state.save_attempt(None)
        except StateError:
            return  # it ends by its time, or counts for nothing beside a switch that is on

    def news(self) -> None:
        """Wakes `over`, from trio's thread, after an attempt began."""
        self._changed.set()

    async def over(self) -> None:
        """Return when a trial has run out."""
        while self.until is None or self.left:
            if self.until is None:
                self._changed = trio.Event()
                await self._changed.wait()
            else:
                await trio.sleep(min(LOOK, self.left))
