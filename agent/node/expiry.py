"""Certificates of this node that are near their end although they should have been renewed, or past it. Pure.

Judged by the share of its own life that is left, with the same thresholds as at the centre (see ca.lifetimes), so that
the rules fit a certificate of an hour and one of ninety days.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from agent.leaf import Leaf
from ca.lifetimes import USUAL, Lifetime, Standing
from ca.x509 import BACKDATED

TELL_EVERY = 86400.0
"""Seconds after which an alarm that stands is told again."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """`text` names the certificate, its end and why it was not renewed."""

    identity: str
    standing: Standing
    text: str


def standing(leaf: Leaf, now: float) -> Standing:
    """How a certificate is at `now`, unix time."""
    return _lifetime(leaf).standing(datetime.fromtimestamp(now, UTC), USUAL)


def alarms(leaves: Iterable[Leaf], reasons: Mapping[str, str], now: float) -> list[Alarm]:
    """What is late or has ended, the nearest end first. `reasons` says by identity why renewing failed last."""
    found = []
    for leaf in sorted(leaves, key=lambda x: x.not_after):
        if (how := standing(leaf, now)) is not Standing.GOOD:
            verb = "ended" if how is Standing.ENDED else "ends"
            why = reasons.get(leaf.uri) or "it is being asked for"
            end = f"{datetime.fromtimestamp(leaf.not_after, UTC):%Y-%m-%d %H:%M:%S} UTC"
            found.append(
                Alarm(leaf.uri, how, f"the certificate of {leaf.uri} {verb} at {end} and is not renewed: {why}")
            )
    return found


class Told:
    """Which alarms were told when, so that each is told once a day."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, Standing], float] = {}

    def news(self, standing_now: Iterable[Alarm], now: float) -> list[Alarm]:
        """Those that are to be told at `now`; what stands no longer is news when it comes again."""
        before, self._told, found = self._told, {}, []
        for alarm in standing_now:
            key = (alarm.identity, alarm.standing)
            at = before.get(key)
            if at is None or abs(now - at) >= TELL_EVERY:
                found.append(alarm)
                at = now
            self._told[key] = at
        return found


def _lifetime(leaf: Leaf) -> Lifetime:
    # Dated back for clocks that differ; with a life of seconds that would be most of it.
    life = max(leaf.not_after - leaf.not_before - BACKDATED.total_seconds(), 0.0)
    return Lifetime("workload", leaf.uri, datetime.fromtimestamp(leaf.not_after, UTC), timedelta(seconds=life))
