"""The worker's book of connections: every one is entered before it is judged, so that no policy change can miss it."""

import time
from collections import deque
from collections.abc import Callable
from itertools import takewhile
from typing import Literal, Protocol

import msgspec

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


class Entry(msgspec.Struct, eq=False):
    """One connection. Filled in as its facts become known; each entry is equal to itself only.

    A Struct for its speed: what most connections leave as it is costs nothing to begin with.
    """

    id: str
    direction: Direction
    security: Security
    source: Party
    opened: float
    started: float
    """Monotonic, as `opened` is not."""
    destination: Party = Party()
    verdict: Verdict = Verdict.ALLOWED
    reason: str = ""
    source_kept: bool = True
    carried: bool = False
    tunnel: str = ""
    trace: str = ""
    policy: str = ""
    dry_run: str = ""
    opaque: bool = False
    preface: bytes = b""
    """What the application is told before the caller's first byte."""
    facts: Facts | None = None
    """What it was judged by; None before, and at the source's end."""
    state: Literal["opening", "open", "closed"] = "opening"
    carrier: Carrier | None = None
    account: Account | None = None
    """That it is charged to, as so many `descriptors`."""
    descriptors: int = 0
    over_budget: bool = False

    def judged(self, facts: Facts, decision: Decision, *, opaque: bool) -> None:
        """Keep what is needed to tell of the decision, and to judge again."""
        self.facts, self.dry_run, self.opaque = facts, decision.would_deny, opaque
        if decision.allowed:
            self.policy = decision.reason

    def record(self) -> Connection:
        """The entry as others see it."""
        carrier = self.carrier
        # In the order of Connection's fields: by their names it would take five times as long.
        return Connection(
            self.id,
            self.direction,
            self.source,
            self.destination,
            self.security,
            self.opened,
            self.verdict,
            self.reason,
            time.monotonic() - self.started,
            carrier.sent if carrier else 0,
            carrier.received if carrier else 0,
            self.source_kept,
            self.carried,
            self.tunnel,
            self.trace,
            self.policy,
            self.dry_run,
            self.opaque,
            len(self.preface),
            self.over_budget,
            self.state,
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
        entry = Entry(f"{self._worker}.{self._count}", direction, security, source, time.time(), time.monotonic())
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
