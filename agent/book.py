"""The worker's book of connections: every one is entered before it is judged, so that no policy change can miss it."""

import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Literal, Protocol

from agent.connections import Connection, Direction, Party, Security, Verdict
from agent.policy import Decision, Facts

KEEP = 2**15
"""Closed records kept for the supervisor; beyond that the oldest are dropped, and counted: traffic never waits."""


class Carrier(Protocol):
    """What moves an entry's bytes: a leg or a pair. `sent` and `received` are as in Connection."""

    @property
    def sent(self) -> int: ...

    @property
    def received(self) -> int: ...

    def abort(self, reason: str = "", verdict: Verdict = Verdict.REFUSED) -> None:
        """End it at once, both ways, with a reset."""


class Account(Protocol):
    """What a connection is charged to (see budgets)."""

    def give(self, descriptors: int) -> None:
        """It has ended."""

    def rebuffed(self) -> None:
        """Whom it meant refused it, before it ends."""


class Entry:
    """One connection. Filled in as its facts become known."""

    __slots__ = (
        "account",
        "carried",
        "carrier",
        "descriptors",
        "destination",
        "direction",
        "dry_run",
        "facts",
        "id",
        "opaque",
        "opened",
        "over_budget",
        "policy",
        "preface",
        "reason",
        "security",
        "source",
        "source_kept",
        "started",
        "state",
        "trace",
        "tunnel",
        "verdict",
    )

    def __init__(self, number: str, direction: Direction, security: Security, source: Party, now: float) -> None:
        self.id = number
        self.direction = direction
        self.security = security
        self.source = source
        self.destination = Party()
        self.opened = now
        self.started = time.monotonic()
        self.verdict = Verdict.ALLOWED
        self.reason = ""
        self.source_kept = True
        self.carried = False
        self.tunnel = ""
        self.trace = ""
        self.policy = ""
        self.dry_run = ""
        self.opaque = False
        self.preface = b""  # what the application is told before the caller's first byte
        self.facts: Facts | None = None  # what it was judged by; None before, and at the source's end
        self.state: Literal["opening", "open", "closed"] = "opening"
        self.carrier: Carrier | None = None
        self.account: Account | None = None  # that it is charged to, as so many descriptors
        self.descriptors = 0
        self.over_budget = False

    def judged(self, facts: Facts, decision: Decision, *, opaque: bool) -> None:
        """Keep what is needed to tell of the decision, and to judge again."""
        self.facts, self.dry_run, self.opaque = facts, decision.would_deny, opaque
        if decision.allowed:
            self.policy = decision.reason

    def record(self) -> Connection:
        """The entry as others see it."""
        carrier = self.carrier
        return Connection(
            id=self.id,
            direction=self.direction,
            source=self.source,
            destination=self.destination,
            security=self.security,
            opened=self.opened,
            verdict=self.verdict,
            reason=self.reason,
            duration=time.monotonic() - self.started,
            sent=carrier.sent if carrier else 0,
            received=carrier.received if carrier else 0,
            source_kept=self.source_kept,
            carried=self.carried,
            tunnel=self.tunnel,
            trace=self.trace,
            policy=self.policy,
            dry_run=self.dry_run,
            opaque=self.opaque,
            preface=len(self.preface),
            over_budget=self.over_budget,
            state=self.state,
        )


class Book:
    """All live connections of one worker, and the closed ones not yet told."""

    def __init__(self, worker: int, changed: Callable[[], None]) -> None:
        """`changed` is called when there is something new to tell."""
        self.live: dict[str, Entry] = {}
        self._opening: dict[str, Entry] = {}  # those of `live` that are not carried yet, oldest first
        self.dropped = 0
        self._worker, self._changed = worker, changed
        self._count = 0
        self._closed: deque[Connection] = deque()

    def enter(self, direction: Direction, security: Security, source: Party) -> Entry:
        """Begin a connection."""
        self._count += 1
        entry = Entry(f"{self._worker}.{self._count}", direction, security, source, time.time())
        self.live[entry.id] = self._opening[entry.id] = entry
        return entry

    def open(self, entry: Entry) -> None:
        """The connection is carried from now on."""
        entry.state, entry.carried = "open", True
        self._opening.pop(entry.id, None)

    def close(self, entry: Entry, verdict: Verdict = Verdict.ALLOWED, reason: str = "") -> None:
        """The connection ended; the first verdict and reason given stand."""
        if self.live.pop(entry.id, None) is None:
            return
        self._opening.pop(entry.id, None)
        if entry.account is not None:
            entry.account.give(entry.descriptors)
        if reason and not entry.reason:
            entry.reason = reason
        if entry.verdict is Verdict.ALLOWED:
            entry.verdict = verdict
        entry.state = "closed"
        self._closed.append(entry.record())
        entry.carrier = None
        if len(self._closed) > KEEP:
            self._closed.popleft()
            self.dropped += 1
        self._changed()

    def expire(self, seconds: float) -> None:
        """Give up those that have been opening for longer."""
        late = time.monotonic() - seconds
        for entry in list(takewhile(lambda e: e.started < late, self._opening.values())):
            if entry.carrier is not None:
                entry.carrier.abort(f"no connection came about within {seconds:.0f} s", Verdict.FAILED)

    def take(self) -> tuple[list[Connection], int]:
        """(closed, dropped) since the last call."""
        closed, dropped = list(self._closed), self.dropped
        self._closed.clear()
        self.dropped = 0
        return closed, dropped
