"""Carries the tables of a node out, in all its namespaces, and keeps them as they should be.

`narrow` takes away what is not to be captured any more; after it `widen` opens listeners, hands them to the workers and
then adds rules. Last it removes the tables that capture nothing any more: until then they translate what they did
capture, so that a reset from the workers reaches its caller. A namespace that cannot be entered, or a port that another
process has, is a problem of that one workload. Rules are never removed because we end: captured means held.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog
import trio

from agent.messages import Role
from agent.node.enrolment import HOST, common
from agent.node.namespace import Namespace, Spot, Standing, remove_table, standing, title
from agent.node.workers import Listener, Workers
from redirect.counts import Counters
from redirect.desired import Desired, Hold, Marks, Parent
from redirect.namespace import NamespaceError
from redirect.netlink import CaptureError

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_ERRORS = (CaptureError, NamespaceError, OSError)
SETTLE = 2.0
"""Seconds that workers have to end what is captured no more; one that hangs does not keep its table."""
AGAIN = 1.0
"""Seconds until what the kernel refused is tried again, where no further news may come."""
PACE, AT_ONCE = 0.1, 10
"""Seconds for one look at the interfaces of a namespace, once so many were at once: who lives there may be able to
change them without end, and all other namespaces wait meanwhile."""


class StartError(Exception):
    """The agent cannot start; the message says why and what to do."""


class Capture:
    """All namespaces of a node. `start` first, `close` at the end. `places` are those where a former life of this agent
    left a table; `lost` is called when somebody else's change could not be undone, `emptied` when a namespace has lost
    its last interface, or got one again."""

    def __init__(
        self,
        workers: Workers,
        marks: Marks,
        places: Iterable[str],
        inbound_port: int,
        lost: Callable[[], None] = lambda: None,
        emptied: Callable[[], None] = lambda: None,
        shares: int = 1,
    ) -> None:
        self._lost, self._emptied = lost, emptied
        self._shares = shares
        self._workers = workers
        self._marks = marks
        self._left = set(places)
        self._inbound_port = inbound_port
        self._namespaces: dict[str, Namespace] = {}
        self._listeners: dict[tuple[str, Spot], list[Listener]] = {}
        self._watches: dict[str, trio.CancelScope] = {}
        self._lock = trio.Lock()
        self._nursery: trio.Nursery | None = None
        self._past: list[Counters] = []
        self._moved: dict[str, set[str]] = {}
        # By place that was left: the workloads of which workers have sockets made there, good for no other namespace.
        self._changed: dict[str, float] = {}
        # By place: since when its table is not ours, because somebody else has changed it.
        self.restored, self.not_captured = 0, 0.0
        """How often such a table was put back, and the seconds until it was, all together."""
        self.problems: dict[str, list[str]] = {}
        """By place: what keeps it from being as desired."""

    async def start(self, nursery: trio.Nursery, tunnel_port: int) -> None:
        """Open the machine's own namespace and the sockets that all share. StartError."""
        self._nursery = nursery
        try:
            host = await self._enter(HOST)
        except _ERRORS as error:
            raise StartError(f"capture is not possible on this machine: {error}") from error
        shared = [Spot(Role.TUNNEL, "", tunnel_port), Spot(Role.PLAINTEXT, "", self._inbound_port)]
        if problems := await trio.to_thread.run_sync(host.open, shared):
            raise StartError("; ".join(problems))
        for spot in shared:
            self._hand_over(HOST, spot)

    async def narrow(self, tables: Mapping[str, Desired]) -> None:
        """Take away the rules that `tables` do not have; what they add is left for `widen`."""
        async with self._lock:
            self.problems = {}
            for place in self._left - tables.keys():
                await self._forget_left(place)
            for place, namespace in self._namespaces.items():
                if not namespace.known and place in tables:
                    continue  # a former life's rules hold until the new ones are complete
                if place not in tables:
                    self._changed.pop(place, None)
                if namespace.applied is None:
                    if not namespace.known:
                        await self._try(place, namespace.remove)  # whom it captured was ended by the former life's end
                    continue
                between = common(namespace.applied, tables.get(place))
                if between == namespace.applied or await self._try(place, namespace.apply, between):
                    continue
                if place not in tables:
                    await self._try(place, namespace.remove)

    async def widen(self, tables: Mapping[str, Desired], held: Iterable[str]) -> set[str]:
        """Make it as `tables` say, and return the workloads that are captured. A workload without its listener is left
        out, unless it is among `held`: who was captured before is refused rather than leaked. The machine's own comes
        last: it holds back what fails open inside the others from the moment it is told that we are there, so that
        they must have been told before."""
        held = frozenset(held)
        captured: set[str] = set()
        async with self._lock:
            for place, desired in sorted(tables.items(), key=lambda row: row[0] == HOST):
                if namespace := await self._entered(place):
                    captured |= await self._widen(namespace, desired, held)
                    self._left.discard(place)
                else:
                    captured |= held & {c.workload for c in desired.captures}
            await self._shut(tables)
        return captured

    async def _widen(self, namespace: Namespace, desired: Desired, held: frozenset[str]) -> set[str]:
        place = namespace.place
        spots = list(_spots(desired, place))
        problems = await trio.to_thread.run_sync(namespace.open, spots)
        self.problems.setdefault(place, []).extend(problems)
        for spot in spots:
            self._hand_over(place, spot)
        lacking = {s.workload for s in spots if s not in namespace.sockets} - held
        desired = replace(desired, captures=tuple(c for c in desired.captures if c.workload not in lacking))
        if (desired != namespace.applied or not namespace.known) and await self._try(place, namespace.apply, desired):
            self._put_back(place)
        if namespace.doubt:
            self.problems[place].append(f"{title(place)}: {namespace.doubt}")
        return {c.workload for c in namespace.applied.captures} if namespace.applied else set()

    async def know(self, parents: tuple[Parent, ...], hold: Hold) -> bool:
        """Cgroups or stations that are nobody's came or went: the machine's own table learns of it. False when that
        failed."""
        async with self._lock:
            host = self._namespaces[HOST]
            if host.applied is not None and host.known:
                # Not the first ones: `widen` opens the socket for those that are unknown, and brings them.
                desired = replace(host.applied, parents=parents if host.applied.parents else (), hold=hold)
                return desired == host.applied or await self._try(HOST, host.apply, desired)
        return True

    async def remove(self, places: Iterable[str] = ()) -> bool:
        """No table of ours anywhere, whoever put it there; `places` are further ones to look at. False when that failed
        somewhere."""
        async with self._lock:
            self.problems = {}
            self._changed = {}
            for place, namespace in list(self._namespaces.items()):
                await self._try(place, namespace.remove)
            for place in {*self._left, *places} - self._namespaces.keys():
                await self._forget_left(place)
            return not any(self.problems.values())

    async def step_aside(self) -> None:
        """We are about to go: workloads that fail open are on their own from now on."""
        async with self._lock:
            for place, namespace in self._namespaces.items():
                await self._try(place, namespace.step_aside)

    def close(self) -> None:
        """Close every socket. Rules stay."""
        for place in list(self._namespaces):
            self._leave(place)

    # ---- what changes by itself

    async def moved(self) -> bool:
        """Whether a path leads to another namespace than it did."""
        places = {p: n.standing for p, n in self._namespaces.items() if p != HOST}
        return await trio.to_thread.run_sync(lambda: any(standing(p) != s for p, s in places.items()))

    async def counters(self) -> Counters:
        """What the tables of all namespaces have counted. What cannot be asked is left out."""
        found = Counters()
        for namespace in list(self._namespaces.values()):
            if namespace.applied:
                try:
                    found = found.plus(await trio.to_thread.run_sync(namespace.counters))
                except _ERRORS as error:
                    log.warning("counters-unknown", place=title(namespace.place), error=str(error))
        return found

    def past(self) -> list[Counters]:
        """What tables that stood before us had counted when they became ours, or went; each is told of once."""
        found = list(self._past)
        del self._past[: len(found)]
        return found

    async def inside(self) -> frozenset[str]:
        """The workloads whose own namespace has its table: not one whose name leads to another namespace by now, nor
        one that nothing leads out of any more, as that of a container that ends."""
        own = [n for p, n in self._namespaces.items() if p != HOST and n.applied and not n.cut_off]
        there = await trio.to_thread.run_sync(lambda: [n for n in own if standing(n.place) == n.standing])
        return frozenset(c.workload for n in there if n.applied for c in n.applied.captures)

    def applied(self) -> dict[str, Desired]:
        """The table of each place that has one."""
        return {p: n.applied for p, n in self._namespaces.items() if n.applied}

    async def _watch(self, namespace: Namespace) -> None:
        """Undo what others do to the table, such as `nft flush ruleset`, and to our routing."""
        with trio.CancelScope() as scope:
            self._watches[namespace.place] = scope
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_routes, namespace)
                if namespace.place != HOST:
                    nursery.start_soon(self._watch_links, namespace)
                while True:
                    await trio.lowlevel.wait_readable(namespace.watch.fileno())
                    noticed = trio.current_time()  # a pass that goes on now is a part of the time without our rules
                    unread = False
                    async with self._lock:
                        try:
                            news = await trio.to_thread.run_sync(namespace.watch.foreign)
                        except OSError as error:
                            news, unread = [f"news cannot be read: {error.strerror}"], True
                        if news and namespace.applied:
                            self._changed.setdefault(namespace.place, noticed)
                            where = title(namespace.place)
                            log.warning("capture-changed-by-others", place=where, what=", ".join(news))
                            if await self._try(namespace.place, namespace.apply, namespace.applied, True):
                                self._put_back(namespace.place)
                            else:
                                log.error("capture-lost", place=where, why=self.problems[namespace.place])
                                self._lost()
                    if unread:
                        await trio.sleep(AGAIN)

    def _put_back(self, place: str) -> None:
        """Say for how long others had changed the table, if they had."""
        if (since := self._changed.pop(place, None)) is not None:
            took = trio.current_time() - since
            self.restored, self.not_captured = self.restored + 1, self.not_captured + took
            log.warning("capture-restored", place=title(place), not_captured_for_seconds=round(took, 3))

    async def _watch_routes(self, namespace: Namespace) -> None:
        known = True
        while True:
            if known:
                await trio.lowlevel.wait_readable(namespace.route_watch.fileno())
            async with self._lock:
                try:
                    news = await trio.to_thread.run_sync(namespace.route_watch.foreign)
                    wanted = namespace.applied and (news or not known)
                    lost = await trio.to_thread.run_sync(namespace.reroute) if wanted else []
                except _ERRORS as error:
                    known = False  # the news is read, and wakes nobody again
                    self._problem(namespace.place, error)
                    self._lost()
                else:
                    known = True
                    if lost:
                        log.warning("routing-restored", place=title(namespace.place), what="; ".join(lost))
            if not known:
                await trio.sleep(AGAIN)

    async def _watch_links(self, namespace: Namespace) -> None:
        known, free = True, 0.0
        while True:
            if known:
                await trio.lowlevel.wait_readable(namespace.link_watch.fileno())
            async with self._lock:  # as everywhere: it may be left meanwhile, which closes what is looked at
                try:
                    changed = await trio.to_thread.run_sync(namespace.look_out)
                except _ERRORS as error:
                    known = False
                    self._problem(namespace.place, error)
                    self._lost()
                else:
                    known = True
                    if changed:
                        self._emptied()
            free = max(free, trio.current_time() - AT_ONCE * PACE) + PACE
            await trio.sleep_until(free if known else trio.current_time() + AGAIN)

    # ---- namespaces

    async def _entered(self, place: str) -> Namespace | None:
        now = await trio.to_thread.run_sync(standing, place)
        known = self._namespaces.get(place)
        if known and known.standing == now:
            return known
        if known:
            log.info("namespace-replaced", place=place)
            self._leave(place)
        try:
            self._not_taken(place, now)
            namespace = await self._enter(place)
        except _ERRORS as error:
            self._problem(place, error)
            return None
        for workload in self._moved.pop(place, ()):
            self._workers.restock(workload)
        return namespace

    def _not_taken(self, place: str, now: Standing | None) -> None:
        for other, namespace in self._namespaces.items():
            if now is not None and namespace.standing == now:
                raise NamespaceError(
                    f"it is the same as {title(other)}, and a workload there has it; match this one by uid or cgroup"
                )

    async def _enter(self, place: str) -> Namespace:
        namespace = await trio.to_thread.run_sync(Namespace, place, self._marks, self._shares, self._past.append)
        self._namespaces[place] = namespace
        if self._nursery:
            self._nursery.start_soon(self._watch, namespace)
        return namespace

    async def _shut(self, tables: Mapping[str, Desired]) -> None:
        """Close the listeners that no rule needs any more, remove the tables without any, and leave their namespaces. A
        table goes last: what waits in a listener's queue is reset, and what workers have reset is on its way."""
        kept = dict(tables)
        for place, namespace in list(self._namespaces.items()):
            if place not in tables and namespace.applied and namespace.applied.captures:
                kept[place] = namespace.applied  # nothing runs there, or its rules could not be removed; tried again
                if await trio.to_thread.run_sync(standing, place) is None:
                    self._leave(place)  # it ends with us
        unneeded = [
            (place, spot)
            for place, namespace in self._namespaces.items()
            for spot in namespace.sockets.keys() - set(_spots(kept[place], place) if place in kept else ())
            if spot.workload
        ]
        for place, spot in unneeded:
            self._take_back(place, spot)
        empty = [namespace for place, namespace in self._namespaces.items() if place not in kept]
        if any(namespace.applied for namespace in empty):
            await self._workers.caught_up(SETTLE)
        for place, spot in unneeded:
            self._namespaces[place].shut(spot)
        for namespace in empty:
            place = namespace.place
            if namespace.applied is not None and not await self._try(place, namespace.remove):
                if await trio.to_thread.run_sync(standing, place) is not None:
                    continue  # tried again
            if place != HOST:
                self._leave(place)

    def _leave(self, place: str) -> None:
        namespace = self._namespaces.pop(place)
        self._changed.pop(place, None)
        self._moved[place] = {spot.workload for spot in namespace.sockets if spot.workload}
        if scope := self._watches.pop(place, None):
            scope.cancel()
        for spot in namespace.sockets:
            self._take_back(place, spot)
        for watch in (namespace.watch, namespace.route_watch, namespace.link_watch):
            trio.lowlevel.notify_closing(watch.fileno())
        namespace.close()

    async def _forget_left(self, place: str) -> None:
        """A former life's table, where nothing is to be captured now."""
        if place != HOST and await trio.to_thread.run_sync(standing, place) is None:
            self._left.discard(place)  # the namespace has taken it along
        elif place in self._namespaces or await self._try(place, remove_table, place, self._marks, self._past.append):
            self._left.discard(place)

    # ---- listeners and errors

    def _hand_over(self, place: str, spot: Spot) -> None:
        shares = self._namespaces[place].sockets.get(spot)
        if shares and (place, spot) not in self._listeners:
            self._listeners[place, spot] = [
                self._workers.listen(spot.role, spot.workload, sock, slot)
                for slot, share in enumerate(shares)
                for sock in share
            ]

    def _take_back(self, place: str, spot: Spot) -> None:
        for listener in self._listeners.pop((place, spot), ()):
            self._workers.unlisten(listener)

    async def _try(self, place: str, call: Callable[..., None], *arguments: object) -> bool:
        try:
            await trio.to_thread.run_sync(call, *arguments)
        except _ERRORS as error:
            self._problem(place, error)
            return False
        return True

    def _problem(self, place: str, error: Exception) -> None:
        text = f"{title(place)}: {error}"
        self.problems.setdefault(place, []).append(text)


def _spots(desired: Desired, place: str) -> Iterable[Spot]:
    for capture in desired.captures:
        yield Spot(Role.OUTBOUND, capture.workload, capture.port)
        if place != HOST:
            yield Spot(Role.PLAINTEXT, capture.workload, desired.inbound_port)
    if desired.parents:
        yield Spot(Role.RESOLVE, "", desired.resolver_port)
