"""Connections of cgroups that the kernel's rules did not know yet: named here, then carried as whose they are.

They come from below the parents of workloads' cgroups (see redirect.unknown), mostly from a unit that has just been
restarted. The kernel says in which cgroup the caller's socket was made, and the cgroup's place in the tree whose it is.
What is nobody's is passed on as it would have gone without us. What can no longer be named is refused: it may have been
a workload's.
"""

import socket
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from agent.book import Book
from agent.connections import Direction, Party, Security, Verdict
from agent.messages import Signs
from agent.openings import skipped
from agent.relay.leg import abort
from agent.route import exactly, here
from agent.snapshot import Snapshot
from agent.worker.admission import endpoint
from agent.worker.inbound import Inbound
from agent.worker.outbound import Outbound, ours
from ca.resources.metadata import Key
from redirect.caller import Callers
from redirect.cgroup import find, mount_point
from redirect.origdst import NotRedirected, original_destination

NOBODY = "of a cgroup that is no workload's: passed on as it was"
SKIPPED = "skipped by capture.out.skip, of a cgroup that was new: passed on as it was"
"""The reasons on record of what went on in plaintext."""
_REMEMBERED = 4096  # cgroups whose place was found lately; ids are never used again


class Unnameable(Exception):
    """Whose connection it is cannot be said any more."""


@dataclass(frozen=True, slots=True)
class Named:
    """Who connects: a workload (namespace/name), or None if it is nobody's; and the user."""

    workload: str | None
    uid: int


@dataclass(slots=True)
class Namer:
    """Says whose a caller is. Its few looks at the tree of cgroups take microseconds, and only the first connections of
    a new cgroup need them, so that they are made where they are needed."""

    signs: Signs
    callers: Callable[[], Callers]
    _places: OrderedDict[int, str | None]
    _callers: Callers | None = None

    @classmethod
    def make(cls, callers: Callable[[], Callers] = Callers) -> "Namer":
        """One that knows nobody yet."""
        return cls(Signs({}, {}, {}), callers, OrderedDict())

    def whose(self, local: tuple[str, int], remote: tuple[str, int]) -> Named:
        """Who connects `local` to `remote`. Unnameable."""
        try:
            if self._callers is None:
                self._callers = self.callers()
            caller = self._callers.find(local, remote)
        except OSError as error:
            raise Unnameable(f"the kernel does not say whose it is: {error.strerror or error}") from error
        if caller is None:
            raise Unnameable("the caller has gone")
        place = self._place(caller.cgroup)
        if place is None:
            raise Unnameable("the caller's cgroup has gone")
        for path in self._closest_first():
            if place == path or place.startswith(path + "/"):
                return Named(self.signs.cgroups[path], caller.uid)
        return Named(self.signs.addresses.get(local[0]) or self.signs.uids.get(caller.uid), caller.uid)

    def _place(self, cgroup: int) -> str | None:
        if cgroup not in self._places:
            root = mount_point()
            found = None
            if root is not None and cgroup:
                likely = (find(cgroup, path, root) for path in self._closest_first())
                found = next((p for p in likely if p is not None), None)
                if found is None:
                    found = find(cgroup, "", root)
            self._places[cgroup] = found
            if len(self._places) > _REMEMBERED:
                self._places.popitem(last=False)
        return self._places[cgroup]

    def _closest_first(self) -> list[str]:
        return sorted(self.signs.cgroups, key=lambda path: -path.count("/"))


def _skipped(snapshot: Snapshot, workload: str, where: tuple[str, int], uid: int) -> bool:
    namespace, _, name = workload.partition("/")
    found = snapshot.here.get(Key("Workload", namespace, name))
    return found is not None and skipped(snapshot, found, *where, uid)


class Resolver:
    """Takes over what the resolver's port accepts."""

    def __init__(self, book: Book, outbound: Outbound, inbound: Inbound, namer: Namer) -> None:
        self._book, self._outbound, self._inbound, self.namer = book, outbound, inbound, namer

    def captured(self, snapshot: Snapshot, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A connection of an unknown cgroup."""
        try:
            where = original_destination(sock)
            named = self.namer.whose((peer[0], peer[1]), where)
            workload = named.workload
            skip = workload is not None and _skipped(snapshot, workload, where, named.uid)
            passed = workload is None or skip
            # As a rule would have done: a stranger who calls a workload of this node.
            stranger = passed and (exactly(snapshot, *where) or (here(snapshot, *where) and ours(where[0])))
        except (NotRedirected, OSError, Unnameable) as error:
            entry = self._book.enter(Direction.OUTBOUND, Security.PLAINTEXT, Party(address=endpoint(*peer[:2])))
            abort(sock)
            self._book.close(entry, Verdict.REFUSED, str(error))
            return
        if workload is not None and not skip:
            self._outbound.captured(snapshot, workload, sock, peer)
        elif stranger:
            self._inbound.plaintext(snapshot, "", sock, peer)
        else:
            entry = self._book.enter(Direction.OUTBOUND, Security.PLAINTEXT, Party(address=endpoint(*peer[:2])))
            entry.destination = Party(address=endpoint(*where))
            entry.reason = SKIPPED if skip else NOBODY
            self._inbound.dial(snapshot, sock, *where, [entry], via=None)
