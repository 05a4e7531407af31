"""All workers of a node: started, given the same, replaced when they die.

What a worker is to know is kept here whole, and each new one gets it in this order: Configure; then, once it says that
it is ready, Roots, Identities, the view, Namespaced, Signs, Listen. So it accepts nothing before it can judge and
speak, and nothing by a view that grew old while it started: connections wait in the queues of its sockets for that
long. The listening sockets stay open here while a worker is replaced: connections queue in them instead of being
refused, but for the pauses of one that keeps dying.
"""

import errno
import itertools
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO

import structlog
import trio

from agent import tally
from agent.connections import Connection, Tunnel
from agent.leaf import Leaf
from agent.messages import (
    TO_WORKER,
    Closed,
    Configure,
    Forget,
    Identity,
    Listen,
    Namespaced,
    Notice,
    Role,
    Roots,
    Signs,
    Stock,
    StockWanted,
    Unlisten,
    View,
)
from agent.node.child import Child
from agent.node.namespace import standing
from agent.node.starting import Starter
from agent.node.turning_away import turn_away
from agent.node.view import Change, MeshView, whole
from redirect.desired import Marks
from redirect.namespace import NamespaceError, in_namespace
from redirect.origdst import spoof_socket

log: structlog.stdlib.BoundLogger = structlog.get_logger()

STEADY = 60.0
"""Seconds after which a worker that dies is replaced at once again."""
FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0
"""Seconds before a worker that died young is replaced: not at all the first time, then doubling."""
STOCK_PAUSE = 1.0
"""Seconds until a namespace that could not be entered is tried again."""
MOST_STOCK = 250
"""Sockets made for one StockWanted; what one message can carry."""

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket that the worker of `slot` accepts from; whoever opened it closes it, after `unlisten`."""

    number: int
    role: Role
    workload: str
    sock: socket.socket
    slot: int


class Workers:
    """`account` is (uid, gid) for all of them. `told` gets Closed; `progress` is called when some worker
    became ready, active or died."""

    def __init__(
        self,
        node: str,
        account: tuple[int, int],
        marks: Marks,
        view: MeshView,
        told: Callable[[Closed], None],
        progress: Callable[[], None],
        starter: Starter,
    ) -> None:
        self._node, self._account, self._marks = node, account, marks
        self._told, self._progress = told, progress
        self._starter = starter
        self._roots = b""
        self._leaves: dict[str, Leaf] = {}
        self._view = view
        self._namespaced: dict[str, str] = {}
        self._signs = Signs({}, {}, {})
        self._listeners: dict[int, Listener] = {}
        self._numbers, self._children = itertools.count(1), itertools.count(1)
        self._live: dict[int, Child] = {}
        self._moved = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._draining = False
        self._borrowing = True
        self._capturing = True
        self._count = 1
        self._tally: FileIO | None = None
        self.restarts = 0
        self.overtime = 0.0
        """Seconds that connections may outlive the certificates of their tunnel; for workers started from then on."""
        self.busy_poll = 0.0
        """Seconds that a worker may look for more before it sleeps; likewise."""

    # ---- what they know

    def borrow(self, allowed: bool) -> None:
        """Whether sockets may take callers' addresses: only where our rules lead the answers back."""
        if allowed != self._borrowing:
            self._borrowing = allowed
            self._configure_all()

    def capture(self, capturing: bool) -> None:
        """Whether anything is captured at all. When not, they end what was: do so while it is still translated."""
        if capturing != self._capturing:
            self._capturing = capturing
            self._configure_all()

    def _configure_all(self) -> None:
        for child in self._live.values():
            child.say(self._configure(child))

    def trust(self, pem: bytes) -> None:
        """The roots from now on."""
        self._roots = pem
        self._say(Roots(pem))

    def hold(self, leaf: Leaf) -> None:
        """A certificate, instead of the one before."""
        self._leaves[leaf.uri] = leaf
        self._say(Identity(leaf.uri, leaf.chain, leaf.key))

    def forget(self, uri: str) -> None:
        """An identity nobody has here any more."""
        if self._leaves.pop(uri, None):
            self._say(Forget(uri))

    def change(self, change: Change) -> None:
        """The mesh, and what changed in it."""
        self._view = change.view
        self._say(View(change.view.snapshot.revision, list(change.put), list(change.delete)))

    def namespaced(self, places: Mapping[str, str]) -> None:
        """The workloads in network namespaces of their own, and the paths of those."""
        if dict(places) != self._namespaced:
            self._namespaced = dict(places)
            self._say(Namespaced(sorted(places)))

    def recognise(self, signs: Signs) -> None:
        """By what to tell the workloads of the host apart."""
        if signs != self._signs:
            self._signs = signs
            self._say(signs)

    def restock(self, workload: str) -> None:
        """Its namespace is another one now: sockets made in the old one lead nowhere."""
        self._say(Namespaced(sorted(self._namespaced.keys() - {workload})))
        self._say(Namespaced(sorted(self._namespaced)))

    def listen(self, role: Role, workload: str, sock: socket.socket, slot: int = 0) -> Listener:
        """Have the worker of `slot` accept at `sock`, which stays the caller's to close after `unlisten`."""
        listener = Listener(next(self._numbers), role, workload, sock, slot)
        self._listeners[listener.number] = listener
        for child in self._fed():
            if child.slot == slot:
                child.say(Listen(listener.number, role, workload), [sock])
        return listener

    def unlisten(self, listener: Listener) -> None:
        """Accept no more there."""
        if self._listeners.pop(listener.number, None):
            self._say(Unlisten(listener.number))

    def _say(self, message: TO_WORKER) -> None:
        for child in self._fed():
            child.say(message)

    def _fed(self) -> list[Child]:
        """Those that know what there was to know when they became ready: what changes since then is said to them."""
        return [child for child in self._live.values() if child.ready]

    # ---- how they are

    @property
    def ready(self) -> int:
        """How many serve."""
        return sum(c.ready for c in self._live.values())

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [c.pid for c in self._live.values() if c.pid]

    async def active(self, revision: int, seconds: float) -> bool:
        """Wait until every worker that serves acts on `revision` or a later one; False when that takes too long. One
        that is being replaced learns the current view before it accepts anything."""
        with trio.move_on_after(seconds):
            while any(c.ready and c.active < revision for c in self._live.values()):
                await self._moved.wait()
            return True
        return False

    async def tables(self, seconds: float = 2.0) -> tuple[list[Connection], list[Tunnel], dict[str, float]]:
        """Live connections and tunnels of all, gauges added up. A worker that does not answer in time is left out."""
        connections: list[Connection] = []
        tunnels: list[Tunnel] = []
        gauges: dict[str, float] = {}

        async def ask(child: Child) -> None:
            if tables := await child.tables(seconds):
                connections.extend(tables.connections)
                tunnels.extend(tables.tunnels)
                for name, value in tables.gauges.items():
                    gauges[name] = gauges.get(name, 0) + value

        async with trio.open_nursery() as nursery:
            for child in list(self._live.values()):
                nursery.start_soon(ask, child)
        connections.sort(key=lambda c: c.opened)
        return connections, tunnels, gauges

    async def caught_up(self, seconds: float) -> None:
        """Wait until every worker that serves has done what it was told so far; no longer than this."""
        async with trio.open_nursery() as nursery:
            for child in self._fed():
                nursery.start_soon(child.tables, seconds, False)

    # ---- their lives

    async def run(self, count: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep `count` workers going until cancelled (they are killed) or drained (they end by themselves)."""
        with FileIO(tally.make(count), "r+") as table:
            async with trio.open_nursery() as nursery:
                self._nursery, self._count, self._tally = nursery, count, table
                for slot in range(count):
                    nursery.start_soon(self._keep, slot)
                task_status.started()

    async def drain(self, seconds: float) -> None:
        """Let all finish, and replace none: `run` returns."""
        self._draining = True
        for child in list(self._live.values()):
            child.drain(seconds)
        self._move()

    async def _keep(self, slot: int) -> None:
        pause = 0.0
        while not self._stops():
            started = trio.current_time()
            child = Child(next(self._children), slot, self._heard, self._hand_over, self._move, self._starter)
            self._live[child.number] = child
            child.say(self._configure(child), [self._tally] if self._tally else [])
            try:
                how = await child.run()
            finally:
                del self._live[child.number]
                if self._tally:
                    tally.clear(self._tally.fileno(), slot)
                self._move()
            if self._stops():
                return
            self.restarts += 1
            if trio.current_time() - started > STEADY:
                pause = 0.0
            lost = int(child.last_tables.gauges.get("connections", 0)) if child.last_tables else 0
            log.error("worker-died", slot=slot, pid=child.pid, how=how, connections_lost=lost, restart_in=pause)
            if pause:
                await self._pause(slot, pause)
            pause = min(max(pause * 2, FIRST_PAUSE), LAST_PAUSE)

    async def _pause(self, slot: int, seconds: float) -> None:
        """Until it is time for the next worker. A connection that waited so long would find its caller gone."""
        refused = 0

        def turned(count: int) -> None:
            nonlocal refused
            refused += count

        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(turn_away, lambda: self._sockets(slot), turned)
                while not self._stops():
                    await self._moved.wait()
                nursery.cancel_scope.cancel()
        if refused:
            log.error("refused-without-worker", slot=slot, connections=refused)

    def _sockets(self, slot: int) -> list[socket.socket]:
        return [listener.sock for listener in self._listeners.values() if listener.slot == slot]

    def _stops(self) -> bool:
        return self._draining

    def _configure(self, child: Child) -> Configure:
        uid, gid = self._account
        spoof = self._marks.spoof if self._borrowing else 0
        return Configure(
            self._node,
            child.number,
            self._marks.agent,
            spoof,
            uid,
            gid,
            self.overtime,
            self._count,
            child.slot,
            self.busy_poll,
            self._capturing,
        )

    def _hand_over(self, child: Child) -> None:
        if child.draining:
            return
        child.say(Roots(self._roots))
        for leaf in self._leaves.values():
            child.say(Identity(leaf.uri, leaf.chain, leaf.key))
        for view in whole(self._view):
            child.say(view)
        child.say(Namespaced(sorted(self._namespaced)))
        child.say(self._signs)
        for listener in self._listeners.values():
            if listener.slot == child.slot:
                child.say(Listen(listener.number, listener.role, listener.workload), [listener.sock])

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
        self._progress()

    def _heard(self, child: Child, message: Closed | StockWanted | Notice) -> None:
        match message:
            case Closed():
                self._told(message)
            case StockWanted() if self._nursery:
                self._nursery.start_soon(self._stock, child, message)
            case Notice(level, event, facts):
                # A worker has read what strangers wrote: nothing of it may pass for a field of ours.
                log.log(_LEVELS.get(level, 30), "worker-notice", worker=child.number, notice=event[:100], facts=facts)

    async def _stock(self, child: Child, wanted: StockWanted) -> None:
        """Sockets made inside a workload's namespace: they belong to it for ever, and no worker may enter it."""
        place = self._namespaced.get(wanted.workload)
        if place is None or wanted.family not in (socket.AF_INET, socket.AF_INET6):
            return
        count = max(0, min(wanted.count, MOST_STOCK))
        family = socket.AddressFamily(wanted.family)
        told = False
        while not child.gone and self._namespaced.get(wanted.workload) == place:
            before = standing(place)
            try:
                socks = await trio.to_thread.run_sync(
                    in_namespace, place, lambda: _spoofers(family, self._marks.spoof, count)
                )
            except (NamespaceError, OSError) as error:
                if not told:
                    log.warning("no-sockets-inside", workload=wanted.workload, place=place, error=str(error))
                    told = True
                if getattr(error, "errno", 0) == errno.EAFNOSUPPORT:
                    return  # and nobody can dial it by that family either
                await trio.sleep(STOCK_PAUSE)
            else:
                if standing(place) == before:
                    child.say(Stock(wanted.workload, wanted.family), socks, give=True)
                    return
                close(socks)  # of the namespace that it was in


def _spoofers(family: socket.AddressFamily, mark: int, count: int) -> list[socket.socket]:
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(spoof_socket(family, mark))
    except BaseException:
        close(made)
        raise
    return made


def close(socks: Iterable[socket.socket]) -> None:
    """Close them all."""
    for sock in socks:
        sock.close()
