"""Certificates are there before they are needed: the schedule (pure), and the task that follows it.

A certificate is replaced when half its life is over, up to a tenth of the life earlier, so that a fleet that started
together does not ask together. Who has none that is valid goes first: his connections are held until it comes. A
failure is followed by a pause that doubles from 1 s to 150 s, give or take a fifth, for that identity alone; the old
certificate is used until it expires.

Dates follow the wall clock, pauses the monotonic one: a clock that is set back must not stretch a pause. Linux does not
count suspended time in the latter, so the task looks at the wall clock at least every 30 s instead of sleeping through.
"""

import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

import trio

from agent.leaf import Leaf
from ca.revoked import Revoked
from ca.x509 import BACKDATED

AT_ONCE = 8
"""Requests in flight: signing takes the centre about a millisecond, the rest is the network."""
LOOK_AGAIN = 30.0
"""Seconds between looks at the wall clock."""
TIMEOUT = 30.0
"""Seconds for one request."""
FIRST_PAUSE, LAST_PAUSE, PAUSE_JITTER = 1.0, 150.0, 0.2
RENEW_AT, RENEW_JITTER = 0.5, 0.1


class IssueError(Exception):
    """No certificate this time; the message says why. Asked for again after a pause."""


@dataclass
class _Entry:
    leaf: Leaf | None = None
    renew: float = 0.0  # wall clock
    pause: float = 0.0  # monotonic: not before
    failures: int = 0
    reason: str = ""
    asked: bool = False
    void: bool = False  # revoked: as good as none, but for want of a better


class Schedule:
    """Which identity is to be asked for when. `wall` and `mono` are the two clocks, in seconds."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._entries: dict[str, _Entry] = {}

    def want(self, identities: Collection[str]) -> frozenset[str]:
        """Exactly these from now on; returns those that are forgotten."""
        gone = frozenset(self._entries.keys() - set(identities))
        for uri in gone:
            del self._entries[uri]
        for uri in identities:
            self._entries.setdefault(uri, _Entry())
        return gone

    def hold(self, leaf: Leaf) -> bool:
        """A certificate is here; False if nobody wants it any more."""
        entry = self._entries.get(leaf.uri)
        if entry is None:
            return False
        # Leaves are dated back for clocks that differ; with a short life that alone would be beyond the half.
        begin = min(leaf.not_before + BACKDATED.total_seconds(), leaf.not_after)
        renew = begin + (leaf.not_after - begin) * (RENEW_AT - self._rng.random() * RENEW_JITTER)
        self._entries[leaf.uri] = _Entry(leaf, renew)
        return True

    def issued(self, leaf: Leaf, mono: float) -> bool:
        """As `hold`, for one that was just issued: whatever its dates, the next is not asked for at once."""
        if not self.hold(leaf):
            return False
        self._entries[leaf.uri].pause = mono + FIRST_PAUSE
        return True

    def failed(self, uri: str, reason: str, mono: float) -> float:
        """Asking failed; returns the pause in seconds."""
        entry = self._entries.get(uri)
        if entry is None:
            return 0.0
        pause = min(FIRST_PAUSE * (1 << entry.failures), LAST_PAUSE)
        pause *= self._rng.uniform(1 - PAUSE_JITTER, 1 + PAUSE_JITTER)
        entry.asked, entry.reason, entry.pause = False, reason, mono + pause
        # Beyond this the pause no longer grows, and 2**n would.
        entry.failures = min(entry.failures + 1, 10)
        return pause

    def kick(self, mono: float) -> None:
        """The centre is in reach again: end the pauses within a second."""
        for entry in self._entries.values():
            entry.pause = min(entry.pause, mono + self._rng.random())
            entry.failures = 0

    def distrust(self, revoked: Revoked, mono: float) -> frozenset[str]:
        """What is revoked is now this. Who holds a revoked certificate asks for another at once, who was refused asks
        again; returns the former."""
        found = set()
        for uri, entry in self._entries.items():
            entry.void = entry.leaf is not None and bool(revoked.serial(entry.leaf.serial))
            if entry.void:
                found.add(uri)
            if entry.void or entry.failures:
                entry.pause, entry.failures = min(entry.pause, mono + self._rng.random()), 0
        return frozenset(found)

    def take(self, wall: float, mono: float) -> list[str]:
        """Those to ask for now, most urgent first, as many as may be in flight; they count as asked for."""
        for entry in self._entries.values():
            if entry.reason and not entry.asked and not self._due(entry, wall):
                entry.reason, entry.failures = "", 0  # the clock was set: it is not even due
        due = sorted(
            (e.leaf.not_after if e.leaf and e.leaf.valid(wall) and not e.void else 0.0, uri)
            for uri, e in self._entries.items()
            if not e.asked and mono >= e.pause and self._due(e, wall)
        )
        taken = [uri for _, uri in due[: self._free()]]
        for uri in taken:
            self._entries[uri].asked = True
        return taken

    def wait(self, wall: float, mono: float) -> float:
        """Seconds until `take` may have something, LOOK_AGAIN at most."""
        if not self._free():
            return LOOK_AGAIN
        times = [
            max(e.pause - mono, 0.0 if self._due(e, wall) else e.renew - wall)
            for e in self._entries.values()
            if not e.asked
        ]
        return min([LOOK_AGAIN, *(max(t, 0.0) for t in times)])

    def _free(self) -> int:
        return AT_ONCE - sum(e.asked for e in self._entries.values())

    def _due(self, entry: _Entry, wall: float) -> bool:
        return entry.leaf is None or entry.void or wall >= entry.renew or not entry.leaf.valid(wall)

    def wanted(self) -> frozenset[str]:
        """All identities that are to have a certificate."""
        return frozenset(self._entries)

    def leaves(self) -> Mapping[str, Leaf]:
        """What is held, expired ones too."""
        return {uri: e.leaf for uri, e in self._entries.items() if e.leaf}

    def certified(self, wall: float) -> frozenset[str]:
        """The identities with a certificate that is valid now."""
        return frozenset(uri for uri, e in self._entries.items() if e.leaf and e.leaf.valid(wall))

    def reasons(self) -> Mapping[str, str]:
        """Why the last request failed, for those where it did."""
        return {uri: e.reason for uri, e in self._entries.items() if e.reason}

    def first_try(self) -> frozenset[str]:
        """Those without a certificate whose first request has not ended yet."""
        return frozenset(uri for uri, e in self._entries.items() if e.leaf is None and not e.reason)


class Renewal:
    """Asks `issue` for certificates when the schedule says so, and hands each new one to `issued`.

    `failed` is told of every failure: identity, reason, pause.
    """

    def __init__(
        self,
        issue: Callable[[str], Awaitable[Leaf]],
        issued: Callable[[Leaf], Awaitable[None]],
        failed: Callable[[str, str, float], None],
        wall: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self.schedule = Schedule(rng)
        self.failures = 0
        self._issue = issue
        self._issued = issued
        self._failed = failed
        self._wall = wall
        self._wake = trio.Event()

    def want(self, identities: Collection[str]) -> frozenset[str]:
        """Exactly these from now on; returns those that are forgotten."""
        gone = self.schedule.want(identities)
        self._wake.set()
        return gone

    def kick(self) -> None:
        """The centre is in reach again."""
        self.schedule.kick(trio.current_time())
        self._wake.set()

    def distrust(self, revoked: Revoked) -> frozenset[str]:
        """What is revoked has changed; returns who has to ask for another certificate because of it."""
        found = self.schedule.distrust(revoked, trio.current_time())
        self._wake.set()
        return found

    async def run(self) -> None:
        """Until cancelled; requests in flight are cancelled with it."""
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                for uri in self.schedule.take(self._wall(), trio.current_time()):
                    nursery.start_soon(self._ask, uri)
                with trio.move_on_after(self.schedule.wait(self._wall(), trio.current_time())):
                    await self._wake.wait()

    async def _ask(self, uri: str) -> None:
        try:
            with trio.fail_after(TIMEOUT):
                leaf = await self._issue(uri)
            if leaf.uri != uri:
                raise IssueError(f"the centre signed {leaf.uri} instead")
            if not leaf.valid(self._wall()):
                raise IssueError(
                    "the certificate is not valid by this machine's clock; is one of the two clocks wrong?"
                )
        except (IssueError, trio.TooSlowError) as error:
            reason = str(error) or f"no answer within {TIMEOUT:.0f} s"
            self.failures += 1
            pause = self.schedule.failed(uri, reason, trio.current_time())
            self._failed(uri, reason, pause)
        else:
            if self.schedule.issued(leaf, trio.current_time()):
                await self._issued(leaf)
        self._wake.set()
