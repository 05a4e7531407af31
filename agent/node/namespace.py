"""One network namespace in which this node captures: our table there and the sockets it leads to.

Sockets and netlink are opened inside the namespace and work from every thread afterwards. They keep the namespace
alive: once its name leads elsewhere, it has to be closed. The table stays in the kernel unless `remove` is called:
captured means held.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from agent.messages import Role
from agent.node.enrolment import HOST
from redirect.counts import Counters
from redirect.desired import Desired, Marks
from redirect.kernel import Kernel
from redirect.links import LinkWatch
from redirect.namespace import NamespaceError, in_namespace
from redirect.netlink import CaptureError
from redirect.origdst import listener
from redirect.route_watch import RouteWatch
from redirect.ruleset import Ruleset
from redirect.watch import Watch

OWN = "/proc/self/ns/net"
UNTOLD = "workloads that are matched by cgroup are guarded, but what they send is not captured"

_V4, _V6 = socket.AF_INET, socket.AF_INET6
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class Spot(NamedTuple):
    """What a listening socket is for: outbound ports are a workload's, the others the namespace's."""

    role: Role
    workload: str
    port: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Which namespace a path leads to now; equal for two paths of one namespace."""

    device: int
    inode: int


def standing(place: str) -> Standing | None:
    """The namespace at `place`; None when there is none."""
    try:
        found = os.stat(place or OWN)
    except OSError:
        return None
    return Standing(found.st_dev, found.st_ino)


class Namespace:
    """The namespace at `place`. Blocking; calls come one at a time, from any thread. `close` closes everything.

    `sockets` has, for each spot, one list a worker: each worker accepts at sockets of its own, over which the kernel
    spreads the connections.

    `past` hears what the table that stood there before us had counted, before we change it.

    Opening raises OSError or NamespaceError, everything else CaptureError or OSError.
    """

    def __init__(
        self, place: str, marks: Marks, workers: int = 1, past: Callable[[Counters], None] | None = None
    ) -> None:
        self.place = place
        self.marks = marks
        self.standing = standing(place)
        self.sockets: dict[Spot, list[list[socket.socket]]] = {}
        self._workers = workers
        self._past = past
        self.applied: Desired | None = None
        self.known = False
        """Whether the kernel holds `applied`: not before the first apply or remove, nor after one that failed."""
        self.doubt = ""
        """What of `applied` this kernel cannot do."""
        self.cut_off = False
        """Whether nothing leads out of it any more: who lived here may be elsewhere by now, without a table."""
        with contextlib.ExitStack() as stack:
            self._kernel = Kernel(place or None, own=True)
            stack.callback(self._kernel.close)
            self.watch: Watch = self._kernel.watch()
            stack.callback(self.watch.close)
            self.route_watch: RouteWatch = self._kernel.watch_routes()
            stack.callback(self.route_watch.close)
            self.link_watch: LinkWatch = in_namespace(place, LinkWatch) if place else LinkWatch()
            stack.callback(self.link_watch.close)
            self._open = stack.pop_all()

    def open(self, spots: Iterable[Spot]) -> list[str]:
        """Listen at those where we do not yet. Returns a sentence for each that cannot be had."""
        problems = []
        for spot in spots:
            if spot not in self.sockets:
                try:
                    self.sockets[spot] = self._listen(spot)
                except OSError as error:
                    who = f"workload {spot.workload}" if spot.workload else "the node"
                    problems.append(f"{who}: {error.strerror or error}")
        return problems

    def _listen(self, spot: Spot) -> list[list[socket.socket]]:
        # Captured on the way out, a connection comes from this very place; the others come from anywhere.
        local = spot.role in (Role.OUTBOUND, Role.RESOLVE)
        pair = ((_V4, "127.0.0.1"), (_V6, "::1")) if local else ((_V4, "0.0.0.0"), (_V6, "::"))
        shared = self._workers > 1

        def both() -> list[list[socket.socket]]:
            made: list[list[socket.socket]] = [[] for _ in range(self._workers)]
            try:
                for share in made:
                    for family, address in pair:
                        try:
                            share.append(listener(family, address, spot.port, self.marks.agent, shared=shared))
                        except OSError as error:
                            if family is _V4 or error.errno not in _NO_IPV6:
                                raise
            except BaseException:
                _close(made)
                raise
            return made

        return in_namespace(self.place, both) if self.place else both()

    def shut(self, spot: Spot) -> None:
        """Listen there no more; what is queued is reset."""
        _close(self.sockets.pop(spot, ()))

    def apply(self, desired: Desired, afresh: bool = False) -> None:
        """Put the table into the kernel."""
        self.known = False
        self.doubt = ""
        try:
            if desired.asks and self.place and self._bare():
                # Once we are told of, the kernel tracks connections there, and one that it knew before there were rules
                # for it is never captured any more.
                self._kernel.apply(desired.untold)
            attended = self._attended(desired) if desired.asks else desired
            self._look_back()
            lacking = self._kernel.apply(attended, afresh)
        except ValueError as error:
            raise CaptureError(errno.EINVAL, f"the capture rules contradict each other: {error}") from error
        if not desired.asks:
            self._kernel.vanish()  # not before: rules that still asked would take us for gone
        if lacking:
            self.doubt = "; ".join(filter(None, (self.doubt, f"{UNTOLD}: {lacking}")))
        self.applied, self.known = desired, True

    def _bare(self) -> bool:
        return self.applied is None and self._kernel.held() is None

    def _attended(self, desired: Desired) -> Desired:
        """The kernel told that we are there. Where it cannot be told, nothing depends on it."""
        try:
            self._kernel.appear(self.marks)
        except CaptureError as error:
            if desired.untold != replace(desired, told=False):
                self.doubt = f"failMode open is not possible, and all fails closed: {error}"
            return desired.untold
        return desired

    def _look_back(self) -> None:
        """Once nothing passes any more, and before a count can go with its rule."""
        if self._past:
            past, self._past = self._past, None
            with contextlib.suppress(CaptureError):  # what is wrong shows in what follows
                past(self._kernel.counters())

    def step_aside(self) -> None:
        """We are about to go: what fails open passes from now on."""
        self._kernel.vanish()

    def remove(self) -> None:
        """Take the table out of the kernel."""
        self.known = False
        self._look_back()
        self._kernel.vanish()
        self._kernel.remove(self.marks)
        self.applied, self.known = None, True

    def reroute(self) -> list[str]:
        """Put back what others took of our routing; what that was."""
        return self._kernel.reroute(self.marks)

    def look_out(self) -> bool:
        """See whether it is cut off; True when that has changed."""
        before, self.cut_off = self.cut_off, self.link_watch.cut_off()
        return self.cut_off != before

    def counters(self) -> Counters:
        """What the table here has counted."""
        return self._kernel.counters()

    def close(self) -> None:
        """Close every socket; the table stays."""
        for spot in list(self.sockets):
            self.shut(spot)
        self._open.close()


def _close(shares: Iterable[Iterable[socket.socket]]) -> None:
    for share in shares:
        for sock in share:
            sock.close()


def remove_table(place: str, marks: Marks, past: Callable[[Counters], None] = lambda _: None) -> None:
    """Take our table out of the namespace at `place`, whoever put it there; `past` hears what it had counted. OSError,
    NamespaceError or CaptureError."""
    kernel = Kernel(place or None)
    try:
        with contextlib.suppress(CaptureError):
            past(kernel.counters())
        kernel.remove(marks)
    finally:
        kernel.close()


def held_table(place: str) -> Ruleset | None:
    """Our table as the kernel has it in the namespace at `place`; None without one, or without the namespace."""
    try:
        kernel = Kernel(place or None)
    except (NamespaceError, OSError):
        return None
    try:
        return kernel.held()
    finally:
        kernel.close()


def title(place: str) -> str:
    """The place in words."""
    return "this machine" if place == HOST else f"network namespace {place}"
