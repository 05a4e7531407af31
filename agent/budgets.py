"""What each workload may take of a worker, so that one's storm costs nobody but itself.

A connection is charged to its workload's account before anything is done for it, in a few look-ups, and refused where a
limit is reached. Each direction has an account of its own: who is flooded from outside can still call others. With
several workers each grants its share, rounded up, of what is allowed in all.

Refusing costs something too. So a workload that was refused STORM connections within a second has the others wait in
the queue of its own listening socket, until the next one.
"""

import resource
import time
from collections.abc import Callable

from agent.book import Entry
from agent.connections import Direction
from agent.snapshot import Snapshot
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

    __slots__ = ("_filled", "_limits", "_rate", "_share", "_tokens", "held", "live", "most", "most_held", "refused")

    def __init__(self) -> None:
        self.live = self.held = 0
        self.refused = 0  # in this second
        self._tokens, self._filled = 0.0, 0.0
        self._rate = 0.0
        self.most = self.most_held = 0
        self._limits = Limits()
        self._share = 1

    def limit(self, limits: Limits, share: int, descriptors: int) -> None:
        """New limits; what is open stays open. `share` is the number of workers, `descriptors` what this one has."""
        self._limits, self._share = limits, share
        counts = [limits.connections or 0, size(limits.memory) // PER_CONNECTION or 1 if limits.memory else 0]
        self.most = min((_part(c, share) for c in counts if c), default=0)
        self.most_held = int(descriptors * SHARE)
        if limits.descriptors:
            self.most_held = min(self.most_held, _part(limits.descriptors, share))
        rate = (limits.connections_per_second or 0) / share
        if rate != self._rate:
            self._rate, self._tokens = rate, max(1.0, rate)

    def take(self, now: float, descriptors: int) -> str:
        """Charge a connection; why not, or nothing."""
        if self.most and self.live >= self.most:
            return self._over_connections()
        if self.held + descriptors > self.most_held:
            return f"over its budget of descriptors in the agent: {self.held} are in use"
        if self._rate:
            self._tokens = min(self._tokens + (now - self._filled) * self._rate, max(1.0, self._rate))
            self._filled = now
            if self._tokens < 1:
                return f"over its budget: more than {self._limits.connections_per_second} connections a second"
            self._tokens -= 1
        self.live += 1
        self.held += descriptors
        return ""

    def give(self, descriptors: int) -> None:
        """A connection that was charged has ended."""
        self.live -= 1
        self.held -= descriptors

    def _over_connections(self) -> str:
        limits = self._limits
        if limits.connections and _part(limits.connections, self._share) == self.most:
            return f"over its budget: {limits.connections} connections are open"
        return f"over its budget of memory, {limits.memory}: {self.live} connections are open"


def _part(limit: int, share: int) -> int:
    return -(-limit // share)


class Budgets:
    """The accounts of one worker, of which there are `share`. `resting` are the workloads (namespace/name) whose
    listeners should rest until the next `tick`, once a second."""

    def __init__(self, share: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.resting: set[str] = set()
        self._share, self._clock = share, clock
        self._accounts: dict[tuple[Key, Direction], tuple[Account, Limits, Limits]] = {}
        self._refused: set[Account] = set()
        self._seen: Snapshot | None = None
        self._making: dict[str, Account] = {}  # in the view last seen
        self._descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    def charge(
        self, snapshot: Snapshot, workload: Workload, direction: Direction, entry: Entry, descriptors: int = 1
    ) -> str:
        """Charge a connection to its workload, until the book closes it; why not, or nothing."""
        return self._charge(self._account(snapshot, workload, direction), entry, descriptors)

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
        if over and account.refused >= STORM:
            self.resting.add(workload)
        return over

    def _charge(self, account: Account, entry: Entry, descriptors: int) -> str:
        over = account.take(self._clock(), descriptors)
        if over:
            entry.over_budget = True
            account.refused += 1
            self._refused.add(account)
        else:
            entry.account, entry.descriptors = account, descriptors
        return over

    def tick(self, snapshot: Snapshot) -> None:
        """A second is over."""
        for account in self._refused:
            account.refused = 0
        self._refused.clear()
        self.resting.clear()
        for place in [p for p, (a, _, _) in self._accounts.items() if not a.live and p[0] not in snapshot.here]:
            del self._accounts[place]

    def _account(self, snapshot: Snapshot, workload: Workload, direction: Direction) -> Account:
        own, common = workload.spec.limits, snapshot.mesh.spec.limits if snapshot.mesh else _NONE
        known = self._accounts.get((workload.key, direction))
        # The same objects, not equal ones: that is asked for every connection.
        if known is None or known[1] is not own or known[2] is not common:
            account = known[0] if known else Account()
            account.limit(own.else_(common), self._share, self._descriptors)
            known = self._accounts[workload.key, direction] = account, own, common
        return known[0]


_NONE = Limits()
