"""What each workload may take of a worker, so that one's storm costs nobody but itself.

A connection is charged to its workload's account before anything is done for it, in a few look-ups, and refused where a
limit is reached. Each direction has an account of its own: who is flooded from outside can still call others. Of what
may be open at a time the workers of a node keep one tally; of what may begin in a second each grants its share.

Refusing costs something too. So a workload that was refused STORM connections that it made within a second, by its own
limits or by whom it called, here or on another node, has the others wait in the queue of its own listening socket,
until the next one. So have strangers who call a workload in a network namespace of its own; arrivals for all others
share their sockets, and cannot wait like that.
"""

import resource
import time
from collections.abc import Callable

from agent.book import Entry
from agent.connections import Direction
from agent.messages import Role
from agent.snapshot import Snapshot
from agent.tally import Tally, number
from ca.resources.limits import Limits, size
from ca.resources.metadata import Key
from ca.resources.workload import Workload

PER_CONNECTION = 2**19
"""Bytes that a connection may take, counted against `memory`: the two buffers of a pair, or a stream's window and as
much again for what stands for it. Windows that grow beyond come out of one small store for the whole worker."""

SHARE = 0.75
"""Of the worker's descriptors that one account may hold, whatever its limits say: a listener that cannot accept would
stop everybody's."""

STORM = 200
"""Refusals of one account in a second after which its listeners rest: some twenty milliseconds of work."""


class Account:
    """Of one workload, in one direction. `held` counts descriptors."""

    __slots__ = (
        "_elsewhere",
        "_filled",
        "_limits",
        "_number",
        "_rate",
        "_tally",
        "_tokens",
        "begun",
        "held",
        "live",
        "most",
        "most_held",
        "most_here",
        "refused",
        "wary",
    )

    def __init__(self, name: str = "", tally: Tally | None = None) -> None:
        self.live = self.held = 0
        self.begun = self.refused = 0  # in this second
        self.wary = False  # whether many were refused in the last
        self._tokens, self._filled = 0.0, 0.0
        self._rate = 0.0
        self.most = self.most_held = self.most_here = 0  # connections, descriptors, descriptors of this worker
        self._limits = Limits()
        self._number, self._tally = number(name), tally
        self._elsewhere = False  # whether it matters what other workers hold

    def limit(self, limits: Limits, share: int, descriptors: int) -> None:
        """New limits; what is open stays open. `share` is the number of workers, `descriptors` what this one has."""
        self._limits = limits
        counts = [limits.connections or 0, size(limits.memory) // PER_CONNECTION or 1 if limits.memory else 0]
        self.most = min((c for c in counts if c), default=0)
        self.most_held, self.most_here = limits.descriptors or 0, int(descriptors * SHARE)
        self._elsewhere = self._tally is not None and bool(self.most or self.most_held)
        if self._tally is None:
            self.most, self.most_held = _part(self.most, share), _part(self.most_held, share)
        elif self._elsewhere:
            self._tally.put(self._number, self.live, self.held)
        rate = (limits.connections_per_second or 0) / share
        if rate != self._rate:
            self._rate, self._tokens = rate, max(1.0, rate)

    def take(self, now: float, descriptors: int) -> str:
        """Charge a connection; why not, or nothing."""
        live, held = self.live, self.held
        if self._elsewhere and self._tally is not None:
            connections, more = self._tally.others(self._number)
            live, held = live + connections, held + more
        if self.most and live >= self.most:
            return self._over_connections(live)
        if over := self._short(held, descriptors):
            return over
        if self._rate:
            self._tokens = min(self._tokens + (now - self._filled) * self._rate, max(1.0, self._rate))
            self._filled = now
            if self._tokens < 1:
                return f"over its budget: more than {self._limits.connections_per_second} connections a second"
            self._tokens -= 1
        self._add(1, descriptors)
        return ""

    def widen(self, descriptors: int) -> str:
        """Charge more descriptors to a connection that is charged already; why not, or nothing."""
        held = self.held
        if self._elsewhere and self._tally is not None:
            held += self._tally.others(self._number)[1]
        over = self._short(held, descriptors)
        if not over:
            self._add(0, descriptors)
        return over

    def give(self, descriptors: int) -> None:
        """A connection that was charged has ended."""
        self._add(-1, -descriptors)

    def rebuffed(self) -> None:
        """A connection that was charged got no further: whom it meant refused it."""
        self.refused += 1

    @property
    def storming(self) -> bool:
        """Whether more of this second would be too much. Who was refused many in the last may not even begin more:
        refusals from another node come when the queue has long been emptied towards it."""
        return self.refused >= STORM or (self.wary and self.begun >= STORM)

    def next_second(self) -> None:
        """A second is over."""
        self.wary = self.refused * 2 >= STORM
        self.begun = self.refused = 0

    def _add(self, connections: int, descriptors: int) -> None:
        self.live += connections
        self.held += descriptors
        if self._elsewhere and self._tally is not None:
            self._tally.put(self._number, self.live, self.held)

    def _short(self, held: int, descriptors: int) -> str:
        if (self.most_held and held + descriptors > self.most_held) or self.held + descriptors > self.most_here:
            return f"over its budget of descriptors in the agent: {held} are in use"
        return ""

    def _over_connections(self, live: int) -> str:
        limits = self._limits
        if limits.connections and live >= limits.connections:
            return f"over its budget: {limits.connections} connections are open"
        return f"over its budget of memory, {limits.memory}: {live} connections are open"


def _part(limit: int, share: int) -> int:
    return -(-limit // share)


class Budgets:
    """The accounts of one worker, of which there are `share` with a `tally` in common: without it each grants its share
    of every limit. `resting` are the listeners, by role and workload (namespace/name), that should rest until the next
    `tick`, once a second."""

    def __init__(self, share: int = 1, tally: Tally | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tally = tally
        self.resting: set[tuple[Role, str]] = set()
        self._share, self._clock = share, clock
        self._accounts: dict[tuple[Key, Direction], tuple[Account, Limits, Limits]] = {}
        self._seen: Snapshot | None = None
        self._making: dict[str, Account] = {}  # in the view last seen
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def charge(
        self,
        snapshot: Snapshot,
        workload: Workload,
        direction: Direction,
        entry: Entry,
        descriptors: int = 1,
        listener: Role | None = None,
    ) -> str:
        """Charge a connection to its workload, until the book closes it; why not, or nothing. `listener` is the role of
        the socket that it came by, if that takes those of this workload alone."""
        account = self._account(snapshot, workload, direction)
        over = self._charge(account, entry, descriptors)
        if over and listener and account.storming:
            self.resting.add((listener, workload.title))
        return over

    def spend(self, snapshot: Snapshot, workload: str, entry: Entry) -> str:
        """Charge a connection that a workload (namespace/name) of this node makes, as `charge` does."""
        if snapshot is not self._seen:
            self._seen = snapshot
            self._making.clear()
        account = self._making.get(workload)
        if account is None:
            namespace, _, name = workload.partition("/")
            found = snapshot.here.get(Key("Workload", namespace, name))
            if found is None:
                return ""  # and it is refused for that
            account = self._making[workload] = self._account(snapshot, found, Direction.OUTBOUND)
        over = self._charge(account, entry, 1)
        if account.storming:
            self.resting.add((Role.OUTBOUND, workload))
        return over

    def widen(self, workload: str, entry: Entry) -> str:
        """Charge the second descriptor of a connection just spent, which leaves in plaintext; why not, or nothing."""
        account = self._making.get(workload)
        if account is None or entry.account is not account:
            return ""
        over = account.widen(1)
        if over:
            entry.over_budget = True
            account.refused += 1
            if account.storming:
                self.resting.add((Role.OUTBOUND, workload))
        else:
            entry.descriptors += 1
        return over

    def _charge(self, account: Account, entry: Entry, descriptors: int) -> str:
        account.begun += 1
        over = account.take(self._clock(), descriptors)
        if over:
            entry.over_budget = True
            account.refused += 1
        else:
            entry.account, entry.descriptors = account, descriptors
        return over

    def tick(self, snapshot: Snapshot) -> None:
        """A second is over."""
        for account, _, _ in self._accounts.values():
            account.next_second()
        self.resting.clear()
        for place in [p for p, (a, _, _) in self._accounts.items() if not a.live and p[0] not in snapshot.here]:
            del self._accounts[place]

    def _account(self, snapshot: Snapshot, workload: Workload, direction: Direction) -> Account:
        own, common = workload.spec.limits, snapshot.mesh.spec.limits if snapshot.mesh else _NONE
        known = self._accounts.get((workload.key, direction))
        # The same objects, not equal ones: that is asked for every connection.
        if known is None or known[1] is not own or known[2] is not common:
            account = known[0] if known else Account(f"{direction.value} {workload.title}", self._tally)
            account.limit(own.else_(common), self._share, self._descriptors)
            known = self._accounts[workload.key, direction] = account, own, common
        return known[0]


_NONE = Limits()
