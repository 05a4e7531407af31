"""Captured connections on their way out of a local workload."""

import os
import socket
from dataclasses import dataclass

from agent.book import Book, Entry
from agent.connections import Direction, Party, Security, Verdict
from agent.relay.leg import Leg, abort
from agent.route import Direct, Local, Refuse, Tunnel, route
from agent.snapshot import Snapshot
from agent.tunnel.headers import Connect
from agent.tunnel.link import Link
from agent.tunnel.pool import Key, Pool
from agent.worker import opaque
from agent.worker.admission import endpoint
from agent.worker.inbound import Inbound
from agent.worker.letting_go import NO_MORE
from ca.resources.metadata import Key as ResourceKey
from ca.resources.workload import Workload
from redirect.origdst import NotRedirected, original_destination

_TRIES = 3
"""Tunnels tried for one connection before it is given up."""
_WAYS = 4096  # remembered; full, it starts anew


class _Opening:
    """A captured connection that waits for a tunnel (pool.Waiter and book.Carrier); then a Leg takes over.

    A tunnel that dies, or goes away, before it answered gives the connection back, and the next one is asked for.
    """

    __slots__ = ("_ask", "_book", "_early", "_entry", "_key", "_left", "_pool", "_sock", "received", "sent")

    def __init__(self, sock: socket.socket, book: Book, entry: Entry, ask: Connect, pool: Pool, key: Key) -> None:
        self._sock, self._book, self._entry, self._ask, self._pool, self._key = sock, book, entry, ask, pool, key
        self._early = b""
        self._left = _TRIES
        self.sent = self.received = 0

    def ask(self) -> None:
        """Wait for a tunnel."""
        self._entry.carrier = self
        self._left -= 1
        self._pool.ask(self._key, self)

    def linked(self, link: Link) -> None:
        if self._entry.carrier is not self:
            return  # ended while it waited
        self._entry.tunnel = link.number
        retry = self._again if self._left else None
        Leg(self._sock, link, link.core.open(self._ask), self._book, self._entry, early=self._early, retry=retry)
        link.touch()

    def _again(self, sock: socket.socket, early: bytes) -> None:
        self._sock, self._early, self.sent = sock, early, len(early)
        self.ask()

    def failed(self, reason: str) -> None:
        self.abort(reason, Verdict.FAILED)

    def abort(self, reason: str = "", verdict: Verdict = Verdict.REFUSED) -> None:
        if self._entry.carrier is self:
            self._entry.carrier = None
            abort(self._sock)
            self._book.close(self._entry, verdict, reason)


@dataclass(frozen=True, slots=True)
class _Way:
    """Into a tunnel: what all connections of one workload to one address and port have in common."""

    source: str
    destination: Party
    key: Key
    authority: str
    baggage: str
    opaque: bool


class Outbound:
    """Takes over what the capture listeners accept. `snapshot` is replaced by the worker."""

    def __init__(self, book: Book, pool: Pool, inbound: Inbound) -> None:
        self._book, self._pool, self._inbound = book, pool, inbound
        self._seen: Snapshot | None = None
        self._ways: dict[tuple[str, tuple[str, int]], _Way] = {}  # in the view last seen

    def captured(self, snapshot: Snapshot, workload: str, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A connection arrived at the socket kept for `workload` (namespace/name)."""
        caller = endpoint(*peer[:2])
        entry = self._book.enter(Direction.OUTBOUND, Security.PLAINTEXT, Party(workload, address=caller))
        try:
            where = original_destination(sock)
        except (NotRedirected, OSError) as error:
            self._refuse(sock, entry, str(error))
            return
        if not self._inbound.capturing:
            entry.destination = Party(address=endpoint(*where))
            self._refuse(sock, entry, NO_MORE, Verdict.FAILED)
            return
        if snapshot is not self._seen or len(self._ways) >= _WAYS:
            self._seen = snapshot
            self._ways.clear()
        if over := self._inbound.budgets.spend(snapshot, workload, entry):
            self._name(snapshot, workload, entry, where)
            self._refuse(sock, entry, over)
        elif way := self._ways.get((workload, where)):
            self._through(way, sock, entry)
        else:
            self._route(snapshot, workload, sock, entry, peer[0], where)

    def _name(self, snapshot: Snapshot, workload: str, entry: Entry, where: tuple[str, int]) -> None:
        """Who is refused for want of budget, before it was looked which way to go."""
        entry.destination = Party(address=endpoint(*where))
        if way := self._ways.get((workload, where)):
            entry.source, entry.destination = Party(workload, way.source, entry.source.address), way.destination
        elif (source := _found(snapshot, workload)) and snapshot.mesh:
            domain = snapshot.mesh.spec.trust_domain
            entry.source = Party(workload, str(source.identity(domain)), entry.source.address)
            if len(found := snapshot.at(*where)) == 1:
                entry.destination = Party(found[0].title, str(found[0].identity(domain)), endpoint(*where))

    def _route(
        self, snapshot: Snapshot, workload: str, sock: socket.socket, entry: Entry, caller: str, where: tuple[str, int]
    ) -> None:
        entry.destination = Party(address=endpoint(*where))
        source = _found(snapshot, workload)
        if source is None or snapshot.mesh is None:
            self._refuse(sock, entry, f"{workload} is no longer enrolled here")
            return
        identity = source.identity(snapshot.mesh.spec.trust_domain)
        entry.source = Party(workload, str(identity), entry.source.address)
        inside = source if self._inbound.inside(source) else None
        try:
            towards = route(snapshot, *where, ours=ours, inside=inside)
        except OSError as error:
            self._refuse(sock, entry, f"whose address that is cannot be asked: {error.strerror}", Verdict.FAILED)
            return
        match towards:
            case Refuse(reason):
                self._refuse(sock, entry, reason)
            case Direct():
                if over := self._inbound.budgets.widen(workload, entry):
                    self._refuse(sock, entry, over)
                    return
                entry.opaque = opaque.leaving(snapshot, source, None, *where)
                self._inbound.dial(snapshot, sock, *where, [entry], via=source)
            case Local(destination):
                entry.security = Security.LOCAL
                entry.opaque = opaque.leaving(snapshot, source, destination, *where)
                self._inbound.local(snapshot, sock, caller, entry, identity, destination, where)
            case Tunnel(destination, expected, node, tunnel_port):
                if why := snapshot.revoked.identity(identity) or snapshot.revoked.identity(expected):
                    entry.security = Security.MTLS
                    entry.destination = Party(destination.title, str(expected), endpoint(*where))
                    self._refuse(sock, entry, why)
                    return
                way = self._ways[workload, where] = _Way(
                    str(identity),
                    Party(destination.title, str(expected), endpoint(*where)),
                    Key(identity, expected, node, tunnel_port),
                    endpoint(*where),
                    f"k8s.namespace.name={source.metadata.namespace},service.name={source.metadata.name}",
                    opaque.leaving(snapshot, source, destination, *where),
                )
                self._through(way, sock, entry)

    def _through(self, way: _Way, sock: socket.socket, entry: Entry) -> None:
        caller = entry.source
        entry.security, entry.opaque = Security.MTLS, way.opaque
        entry.source, entry.destination = Party(caller.workload, way.source, caller.address), way.destination
        drawn = os.urandom(24).hex()
        entry.trace, span = drawn[:32], drawn[32:]
        ask = Connect(way.authority, way.baggage, f'for="{caller.address}"', f"00-{entry.trace}-{span}-01")
        _Opening(sock, self._book, entry, ask, self._pool, way.key).ask()

    def _refuse(self, sock: socket.socket, entry: Entry, reason: str, verdict: Verdict = Verdict.REFUSED) -> None:
        abort(sock)
        self._book.close(entry, verdict, reason)


def _found(snapshot: Snapshot, workload: str) -> Workload | None:
    """The workload of this node that is called so (namespace/name)."""
    namespace, _, name = workload.partition("/")
    return snapshot.here.get(ResourceKey("Workload", namespace, name))


def ours(address: str) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it. OSError for want of descriptors."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
