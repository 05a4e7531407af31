"""Two clocks: how far this machine's is from the centre's, and when it jumped. Pure.

Certificates are dated by the centre's clock and judged by ours. Each exchange with the centre tells its time, somewhere
between our question and its answer: the middle of the two is the best guess, half of what lies between the most that
it can be wrong. What is kept is the difference to a clock that nobody sets and that counts suspended time as well
(CLOCK_BOOTTIME), so that the skew stays known while our own clock is being set.
"""

from collections.abc import Callable
from dataclasses import dataclass

DRIFT = 1e-4
"""Seconds per second by which two quartz clocks may part: an old measurement gets less certain by that."""
STEP = 0.5
"""Seconds by which a clock must have been set, or a machine slept, to count as a jump. NTP slews are far below."""


@dataclass(frozen=True, slots=True)
class Skew:
    """`ahead` is by how many seconds our clock is ahead of the centre's (negative: behind), give or take
    `uncertainty`."""

    ahead: float
    uncertainty: float

    def __str__(self) -> str:
        return f"{spell(abs(self.ahead))} {'behind' if self.ahead < 0 else 'ahead of'} the centre's"

    def beyond(self, bound: float) -> bool:
        """Whether the clocks are certainly further apart than that."""
        return abs(self.ahead) - self.uncertainty > bound


class CentreClock:
    """The centre's time as far as it is known. `wall` is our clock that can be set, `boot` the one that cannot."""

    def __init__(self, wall: Callable[[], float], boot: Callable[[], float]) -> None:
        self._wall, self._boot = wall, boot
        self._offset = self._uncertainty = self._measured = 0.0
        self._known = False

    def heard(self, time: float, sent: float, received: float) -> None:
        """The centre said `time` (unix) between these two moments of the boot clock. A better measurement stays, unless
        the two contradict each other: then the centre's clock was set."""
        uncertainty = max(received - sent, 0.0) / 2
        offset, kept = time - (sent + received) / 2, self._now_uncertain()
        if self._known and uncertainty > kept and abs(offset - self._offset) <= uncertainty + kept:
            return
        self._offset, self._uncertainty, self._measured, self._known = offset, uncertainty, received, True

    def now(self) -> float:
        """The centre's time, unix; our own as long as it has told us nothing."""
        return self._boot() + self._offset if self._known else self._wall()

    def skew(self) -> Skew | None:
        """How far our clock is from the centre's at this moment; None before the first measurement."""
        return Skew(self._wall() - self.now(), self._now_uncertain()) if self._known else None

    def objection(self, bound: float) -> str:
        """Why no certificate is asked for by this clock; empty if it is near enough, or nothing is known."""
        skew = self.skew()
        if skew is None or not skew.beyond(bound):
            return ""
        return (
            f"this machine's clock is {skew}, more than the {spell(bound)} of max_skew: no certificate can be judged "
            "by it. Set whichever is wrong, as with chrony or systemd-timesyncd"
        )

    def _now_uncertain(self) -> float:
        return self._uncertainty + (self._boot() - self._measured) * DRIFT


class Jumps:
    """Notices that the wall clock was set or the machine slept: asked now and then, it compares three clocks."""

    def __init__(self, wall: float, mono: float, boot: float) -> None:
        self._last = wall, mono, boot

    def look(self, wall: float, mono: float, boot: float) -> tuple[float, float]:
        """(seconds that the clock was set forward, seconds slept) since the last look; 0 for what is below STEP."""
        before_wall, before_mono, before_boot = self._last
        self._last = wall, mono, boot
        step = (wall - before_wall) - (boot - before_boot)
        slept = (boot - before_boot) - (mono - before_mono)
        return step if abs(step) >= STEP else 0.0, slept if slept >= STEP else 0.0


def spell(seconds: float) -> str:
    """A length of time for people: `1.2 ms`, `3 h 20 min`."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
