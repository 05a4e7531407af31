"""Captured connections on their way out of a local workload."""

import os
import socket

from agent import opaque
from agent.admission import endpoint
from agent.book import Book, Entry
from agent.connections import Direction, Party, Security, Verdict
from agent.inbound import Inbound
from agent.relay.leg import Leg, abort
from agent.route import Direct, Local, Refuse, Tunnel, route
from agent.snapshot import Snapshot
from agent.tunnel.headers import Connect
from agent.tunnel.link import Link
from agent.tunnel.pool import Key, Pool
from ca.resources.metadata import Key as ResourceKey
from redirect.origdst import NotRedirected, original_destination

_TRIES = 3
"""Tunnels tried for one connection before it is given up."""


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


class Outbound:
    """Takes over what the capture listeners accept. `snapshot` is replaced by the worker."""

    def __init__(self, book: Book, pool: Pool, inbound: Inbound) -> None:
        self._book, self._pool, self._inbound = book, pool, inbound

    def captured(self, snapshot: Snapshot, workload: str, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A connection arrived at the socket kept for `workload` (namespace/name)."""
        namespace, _, name = workload.partition("/")
        source = snapshot.here.get(ResourceKey("Workload", namespace, name))
        domain = snapshot.mesh.spec.trust_domain if snapshot.mesh else ""
        identity = source.identity(domain) if source else None
        party = Party(workload, str(identity or ""), endpoint(*peer[:2]))
        entry = self._book.enter(Direction.OUTBOUND, Security.PLAINTEXT, party)
        try:
            address, port = original_destination(sock)
        except (NotRedirected, OSError) as error:
            self._refuse(sock, entry, str(error))
            return
        entry.destination = Party(address=endpoint(address, port))
        if source is None or identity is None:
            self._refuse(sock, entry, f"{workload} is no longer enrolled here")
            return
        inside = source if self._inbound.inside(source) else None
        match route(snapshot, address, port, ours=ours, inside=inside):
            case Refuse(reason):
                self._refuse(sock, entry, reason)
            case Direct():
                entry.opaque = opaque.leaving(snapshot, source, None, address, port)
                self._inbound.dial(snapshot, sock, address, port, [entry], via=source)
            case Local(destination):
                entry.security = Security.LOCAL
                entry.opaque = opaque.leaving(snapshot, source, destination, address, port)
                self._inbound.local(snapshot, sock, peer[0], entry, identity, destination, (address, port))
            case Tunnel(destination, expected, node, tunnel_port):
                entry.security = Security.MTLS
                entry.opaque = opaque.leaving(snapshot, source, destination, address, port)
                entry.destination = Party(destination.title, str(expected), endpoint(address, port))
                if why := snapshot.revoked.identity(identity) or snapshot.revoked.identity(expected):
                    self._refuse(sock, entry, why)
                    return
                entry.trace = os.urandom(16).hex()
                ask = Connect(
                    endpoint(address, port),
                    f"k8s.namespace.name={namespace},service.name={name}",
                    f'for="{endpoint(*peer[:2])}"',
                    f"00-{entry.trace}-{os.urandom(8).hex()}-01",
                )
                key = Key(identity, expected, node, tunnel_port)
                _Opening(sock, self._book, entry, ask, self._pool, key).ask()

    def _refuse(self, sock: socket.socket, entry: Entry, reason: str) -> None:
        abort(sock)
        self._book.close(entry, Verdict.REFUSED, reason)


def ours(address: str) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
