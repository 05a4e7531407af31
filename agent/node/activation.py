"""Makes a node act on its view of the mesh: the one task through which views, certificates and captures come together.

It is level-triggered: whatever happened, a pass compares what should be with what is and carries the difference out, in
the order that `enrolment` describes. So nothing depends on the order of news, and what failed is simply tried again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import structlog
import trio

from agent.discovery.tenants import Tenants
from agent.node.capture import Capture
from agent.node.cgroups import Cgroups, Located
from agent.node.enrolment import HOST, Enrolment, Local, Ports, admitted, allot, enrol, guarded, release, signs, tables
from agent.node.exempt import RESOLVE, Exempt, Exemptions
from agent.node.files import StateError
from agent.node.holding import hold, lodgings
from agent.node.renewal import Renewal
from agent.node.state import State
from agent.node.switch import Switch
from agent.node.view import Change, MeshView
from agent.node.workers import Workers
from redirect.bridges import Bridges, bridges
from redirect.desired import Desired, Hold, Parent
from redirect.netlink import CaptureError

log: structlog.stdlib.BoundLogger = structlog.get_logger()

LOOK = 1.0
"""Seconds between looks at what tells nobody when it changes: a namespace that another has replaced."""
SHARE = 100
"""A look for where people log in may take this fraction of a core: where there are thousands of sockets, such as those
that we listen on ourselves, it comes less often than once a second."""
RETRY = 2.0
"""Seconds after which what could not be carried out is tried again."""
LONGEST_REST = 0.5
"""Seconds. After a pass the task rests as long as the pass took, but no longer than this: in a large mesh that never
stops changing, changes are gathered instead of taking a whole core."""
GATHER = 0.05
"""Seconds between looks at cgroups that are nobody's; meanwhile new ones are the resolver's."""
SETTLE = 5.0
"""Seconds that workers have to act on a view before rules follow it anyway; one that hangs is being killed by then."""


class Activation:
    """`active` is the revision that certificates, listeners and rules all follow, `problems` what stands against it;
    `reported` is called when either changed. `base` is what all tables share; `holds` whether what comes from behind
    bridges of containers may have to wait."""

    def __init__(
        self,
        view: MeshView,
        state: State,
        workers: Workers,
        capture: Capture,
        renewal: Renewal,
        pool: range,
        base: Desired,
        wall: Callable[[], float],
        reported: Callable[[], None],
        exempt: Exemptions,
        holds: bool = True,
    ) -> None:
        self.view = view
        self.enrolment = Enrolment()
        self.active = 0
        self.problems: tuple[str, ...] = ()
        self.ports = self._on_disk = state.ports()
        self.switched = Switch(state)
        self.exempt = exempt
        self.captured: frozenset[str] = frozenset()
        self._state, self._workers, self._capture, self._renewal = state, workers, capture, renewal
        self._pool, self.base, self._wall, self._reported = pool, base, wall, reported
        self._changes: list[Change] = []
        self._cgroups: Located = {}
        self._parents: tuple[Parent, ...] = ()
        self._exempted = Exempt()
        """What the last pass left alone; whoever asks for a plan looks as well, and nothing follows from that."""
        self._watched = Cgroups()
        self._holds = holds
        self._tenants = Tenants()
        self._hold = Hold()
        self._housed: tuple[Sequence[Local], Mapping[str, tuple[str, ...]], Tenants] = (), {}, self._tenants
        """What `_hold` follows from, but for which of their namespaces have a table."""
        self._seeing = trio.Lock()
        self._emptied = trio.Event()
        self._next_look = 0.0
        self._again = trio.Event()
        self._passing = trio.Lock()
        self._stored = state.leaves()
        self.first = trio.Event()
        """Set when a view has been acted on for the first time."""

    @property
    def off(self) -> bool:
        """Whether the operator has switched capture off."""
        return self.switched.off

    def close(self) -> None:
        """When nothing runs any more."""
        self._watched.close()

    def take(self, change: Change) -> None:
        """A new view."""
        self.view = change.view
        self._changes.append(change)
        self.poke()

    def meet(self, tenants: Tenants) -> None:
        """Containers came or went."""
        if tenants != self._tenants:
            self._tenants = tenants
            self.poke()

    def emptied(self) -> None:
        """A namespace has lost its last interface, as that of a container does that restarts, or has one again."""
        self._emptied.set()

    def poke(self) -> None:
        """Something happened that a pass should look at."""
        self._again.set()

    async def run(self) -> None:
        """Until cancelled; rules stay as they are then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
            nursery.start_soon(self._follow_interfaces)
            nursery.start_soon(self._roll_back)
            if self.exempt.named:
                nursery.start_soon(self._resolve)
            await self._repeat()

    async def _repeat(self) -> None:
        while True:
            self._again = trio.Event()
            started = trio.current_time()
            failed = not await self.once()
            await trio.sleep(min(trio.current_time() - started, LONGEST_REST))
            await self._wait(RETRY if failed else float("inf"))

    async def once(self) -> bool:
        """One pass; False if something should be tried again."""
        async with self._passing:
            if self.view.snapshot.mesh is None:
                # Nothing is known yet. What a former life captured stays held until something is, or nobody shall be.
                return not self.off or await self._let_go()
            return await self._pass()

    async def switch(self, off: bool) -> None:
        """Switch capture off or on, and remember it; returns when it is so."""
        async with self._passing:
            await trio.to_thread.run_sync(self.switched.turn, off)
        await self.once()

    async def attempt(self, seconds: float) -> None:
        """Capture for so long, and no longer unless it is switched on meanwhile; returns when it is so. StateError."""
        async with self._passing:
            await trio.to_thread.run_sync(self.switched.attempt, seconds)
            self.switched.news()
        await self.once()

    async def _roll_back(self) -> None:
        """The kernel has ended the trial; tidy up after it."""
        while True:
            await self.switched.over()
            async with self._passing:
                if self.switched.until is None or self.switched.left:
                    continue
                await trio.to_thread.run_sync(self.switched.end)
            log.warning("capture-rolled-back", why="it was not confirmed in time; `culvert capture apply` tries again")
            self.poke()

    async def _resolve(self) -> None:
        """Follow the centre's name."""
        while True:
            await trio.to_thread.run_sync(self.exempt.resolve, abandon_on_cancel=True)
            await trio.sleep(RESOLVE)

    async def intended(self) -> dict[str, Desired]:
        """The tables that there would be with capture switched on. Changes nothing."""
        async with self._passing:
            wanted = admitted(enrol(self.view), self.ports, self._renewal.schedule.certified(self._wall()))
            wanted = guarded(self.view, wanted, self._tenants.serves)
            ports, _ = allot(self.ports, wanted, self._pool)
            cgroups, parents, _ = await self._standing(wanted)
            exempt = await trio.to_thread.run_sync(self.exempt.look)
            return self._tables(self.view, wanted, ports, cgroups, parents, exempt)[0]

    async def _standing(self, wanted: Sequence[Local]) -> tuple[Located, tuple[Parent, ...], list[str]]:
        """Where the cgroups of these workloads are, those above them, and what stands against some."""
        cgroups, strange = await self._located([w.cgroup for w in wanted if w.cgroup])
        return cgroups, await trio.to_thread.run_sync(self._watched.parents, cgroups), strange

    def _tables(
        self,
        view: MeshView,
        wanted: Sequence[Local],
        ports: Ports,
        cgroups: Located,
        parents: tuple[Parent, ...],
        exempt: Exempt,
    ) -> tuple[dict[str, Desired], list[str]]:
        """The table of each place for these workloads, and a sentence for each port of theirs that is exempt."""
        strange = [
            f"workload {w.workload}: port {port} of {address} is never captured (`culvert capture plan` says why)"
            for w in wanted
            for address, port in w.serves
            if w.place == HOST and exempt.holds(address, port)
        ]
        base = replace(self.base, login_ports=exempt.ports, spared=exempt.pairs, until=self.switched.until)
        desired = tables(view, wanted, ports, cgroups, base, parents, self._hold)
        # Who logs in to a workload's own namespace does not log in to this machine.
        inside = {p: replace(d, login_ports=frozenset()) for p, d in desired.items() if p != HOST}
        return {**desired, **inside}, strange

    async def leave(self) -> None:
        """Remove every table, for good; nothing is captured after this."""
        async with self._passing:
            self.switched.off = True
            await self._capture.narrow({})
            self._workers.capture(False)
            await self._capture.widen({}, ())
            await self._capture.remove(self.ports.namespaces.values())
            self.captured = frozenset()

    async def _let_go(self) -> bool:
        self.captured = frozenset()
        return await self._capture.remove(self.ports.namespaces.values())

    async def _pass(self) -> bool:
        view, changes = self.view, self._changes
        self._changes = []
        enrolment = self.enrolment = enrol(view)
        before = self.ports
        gone = self._renewal.want(enrolment.identities) | self._unstore(enrolment)
        # As of the same moment as what is admitted: a certificate that comes during this pass is for the next one.
        waiting = self._renewal.schedule.first_try() and not self.off
        wanted = () if self.off else admitted(enrolment, before, self._renewal.schedule.certified(self._wall()))
        tenants = self._tenants
        wanted = guarded(view, wanted, tenants.serves)
        ports, lacking = allot(before, wanted, self._pool)
        ports, unheld = await self._lodged(wanted, ports, tenants)
        self._housed = wanted, ports.bridges, tenants
        await self._see_tables()
        faults = await self._kept(self._state.views.keep, changes, view) + await self._keep(ports)
        self._cgroups, self._parents, strange = await self._standing(wanted)
        self._exempted = await trio.to_thread.run_sync(self.exempt.look)
        desired, untaken = self._tables(view, wanted, ports, self._cgroups, self._parents, self._exempted)
        strange += unheld
        self._workers.recognise(signs(wanted, self._watched.root))

        if self.off:
            self._workers.borrow(False)
        await self._capture.narrow(desired)
        for change in changes:
            self._workers.change(change)
        self._workers.capture(bool(desired))
        self._workers.namespaced({w.workload: w.place for w in enrolment.locals if w.place})
        if changes and not await self._workers.active(view.snapshot.revision, SETTLE):
            log.warning("workers-behind", revision=view.snapshot.revision)
        # Where nothing runs there is nothing to enter; who rests there is as good as captured, and held all the same.
        awake = {p: d for p, d in desired.items() if p not in tenants.resting}
        if HOST in awake:
            awake[HOST] = replace(awake[HOST], hold=self._hold)  # a container may have ended meanwhile
        captured = await self._capture.widen(awake, {*before.outbound, *before.namespaces})
        captured |= {w.workload for w in wanted if w.place in tenants.resting}
        self.captured = frozenset(captured)
        # Who has a table now is held back no more, and what it lets out can be vouched for.
        await self._see_tables()
        await self._capture.know(self._parents, self._hold)
        if not self.off:
            self._workers.borrow(True)

        faults += await self._keep(release(ports, [w for w in wanted if w.workload in captured]))
        for uri in gone:
            self._workers.forget(uri)
            faults += await self._kept(self._state.forget_leaf, uri)
        failures = [text for texts in self._capture.problems.values() for text in texts]
        active = self.active if waiting else view.snapshot.revision
        self._conclude(
            active, [*enrolment.problems, *lacking, *strange, *untaken, *self._uncertified(), *failures, *faults]
        )
        self.first.set()
        return not failures and not faults

    async def _lodged(self, wanted: Sequence[Local], ports: Ports, tenants: Tenants) -> tuple[Ports, tuple[str, ...]]:
        """`ports` with the bridges behind which containers live now, and what stands against holding some."""
        if not self._holds:
            return msgspec.structs.replace(ports, bridges={}), ()
        places = {w.place for w in wanted if w.place}
        addresses = {a for place in places for a, _ in tenants.places.get(place, ())}
        try:
            lives = await trio.to_thread.run_sync(bridges, addresses) if addresses else Bridges()
        except (CaptureError, OSError) as error:
            lives = Bridges(problems=(f"bridges of containers are not known: {error}",))
        found = lodgings(wanted, ports.bridges, tenants, lives.of)
        return msgspec.structs.replace(ports, bridges=found), lives.problems

    def _unstore(self, enrolment: Enrolment) -> frozenset[str]:
        """Take up the certificates that were on disk, once it is known who needs them; returns those nobody does."""
        stored, self._stored = self._stored, {}
        for leaf in stored.values():
            if self._renewal.schedule.hold(leaf):
                self._workers.hold(leaf)
        return frozenset(stored) - enrolment.identities

    def _conclude(self, active: int, problems: Sequence[str]) -> None:
        if (active, tuple(problems)) != (self.active, self.problems):
            self.active, self.problems = active, tuple(problems)
            log.info("active", revision=active, captured=len(self.captured), problems=list(problems))
            self._reported()

    def _uncertified(self) -> list[str]:
        schedule, now = self._renewal.schedule, self._wall()
        missing = self.enrolment.identities - schedule.certified(now)
        reasons = schedule.reasons()
        return [
            f"workload {w.workload}: no valid certificate for {w.identity}: {reasons[w.identity]}"
            for w in self.enrolment.locals
            if w.identity in missing and w.identity in reasons
        ]

    async def _keep(self, ports: Ports) -> list[str]:
        self.ports = ports
        if ports == self._on_disk:
            return []
        faults = await self._kept(self._state.save_ports, ports)
        self._on_disk = self._on_disk if faults else ports
        return faults

    async def _kept(self, save: Callable[..., None], *what: object) -> list[str]:
        """To disk, before anything follows that should not be there without it; a fault if it cannot be."""
        try:
            await trio.to_thread.run_sync(save, *what)
        except StateError as error:
            return [str(error)]
        return []

    async def _wait(self, longest: float) -> None:
        """Until somebody pokes, something moved, or it is time to try again."""
        until = trio.current_time() + longest
        while trio.current_time() < until:
            with trio.move_on_after(LOOK):
                await self._again.wait()
                return
            if await self._cgroups_moved() or await self._capture.moved() or await self._logins_moved():
                return
            await self._meet()

    async def _follow(self) -> None:
        while True:
            await self._watched.news()
            if await self._cgroups_moved():
                self.poke()
            else:
                await self._meet()
                # Machines that start programs all the time have many: gathered, they cost what a few do.
                await trio.sleep(GATHER)

    async def _follow_interfaces(self) -> None:
        """Hold back what goes to a container that ends before another one can be where it was."""
        while True:
            await self._emptied.wait()
            self._emptied = trio.Event()
            await self._see_tables()
            if not await self._capture.know(self._parents, self._hold):
                self.poke()

    async def _see_tables(self) -> None:
        async with self._seeing:  # one after the other: what was seen first must not count last
            inside = await self._capture.inside()
            self._hold = hold(*self._housed, inside)

    async def _meet(self) -> None:
        """Learn the cgroups that are nobody's, so that their connections are left alone."""
        parents = await trio.to_thread.run_sync(self._watched.parents, self._cgroups)
        if parents != self._parents and not self._passing.locked():
            # A pass that is under way has listed them itself, or the next look will.
            self._parents = parents
            if not await self._capture.know(parents, self._hold):
                self.poke()

    async def _logins_moved(self) -> bool:
        started = trio.current_time()
        if started < self._next_look:
            return False
        found = await trio.to_thread.run_sync(self.exempt.look)
        ended = trio.current_time()
        self._next_look = ended + SHARE * (ended - started)
        return found != self._exempted

    async def _cgroups_moved(self) -> bool:
        known = self._cgroups
        return (await self._located(known))[0] != known

    async def _located(self, paths: Iterable[str]) -> tuple[Located, list[str]]:
        return await trio.to_thread.run_sync(self._watched.locate, list(paths))
