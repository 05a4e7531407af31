"""Connections on their way to a local workload: out of tunnels, captured in plaintext, or from a neighbour here.

All three come to the same points: find the workload, judge, dial it. The connection is in the book before it is judged.
"""

import errno
import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache

from agent.authorize import Authorizer
from agent.book import Book, Entry
from agent.connections import Direction, Party, Security, Verdict
from agent.messages import Role
from agent.policy import Facts
from agent.relay.leg import Leg, abort
from agent.relay.loop import Relay
from agent.relay.pair import Pair
from agent.route import Refuse, here, is_loopback
from agent.snapshot import Snapshot
from agent.tunnel.link import Link
from agent.tunnel.stream import Asked
from agent.worker import opaque, proxyheader
from agent.worker.admission import Admission, endpoint, parse_authority, parse_forwarded
from agent.worker.budgets import Budgets
from agent.worker.letting_go import NO_MORE
from agent.worker.stock import Stocks
from ca.identity import WorkloadIdentity
from ca.resources.workload import SourceAddress, Workload
from redirect.origdst import (
    NotRedirected,
    dial_socket,
    original_destination,
    prefer_port,
    put_mark,
    spoof_socket,
    spoof_source,
)

_TRACE = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@lru_cache(maxsize=1024)
def _peer(identity: str, address: str) -> Party:
    """Who speaks in a tunnel, as long as it is not known for whom: the same for each of its streams."""
    return Party(identity=identity, address=endpoint(address, 0))


@dataclass(slots=True)
class Marks:
    """Marks for dialled sockets; `spoof` is 0 where the kernel cannot dial from foreign addresses."""

    agent: int
    spoof: int


class Inbound:
    """Judges and dials. Errors of a peer or a workload end its connection and stand in the book."""

    def __init__(
        self, relay: Relay, book: Book, stocks: Stocks, marks: Marks, authorizer: Authorizer, budgets: Budgets
    ) -> None:
        self._relay, self._book, self._stocks, self.marks = relay, book, stocks, marks
        self._authorizer, self._admission = authorizer, Admission(authorizer)
        self.budgets = budgets
        self.capturing = True

    def _denied(self, snapshot: Snapshot, entry: Entry, facts: Facts, workload: Workload) -> str:
        """Judge; why not, or nothing. The entry keeps what is needed to judge again."""
        decision = self._authorizer.judge(snapshot, facts, workload)
        entry.judged(facts, decision, opaque=opaque.arriving(snapshot, workload, facts.source, facts.port))
        return "" if decision.allowed else decision.reason

    # ---- out of tunnels

    def asked(self, snapshot: Snapshot, link: Link, asked: Asked) -> None:
        """A peer opened a stream."""
        ask, source = asked.ask, _peer(str(link.peer), link.peer_address)
        entry = self._book.enter(Direction.INBOUND, Security.MTLS, source)
        entry.tunnel = link.number
        if ask is None:
            self._answer(link, asked, entry, 400, asked.reason)
            return
        claimed, port = parse_forwarded(ask.forwarded)
        ruling = self._admission.rule(snapshot, link.peer, link.local, link.peer_address, claimed, ask.authority)
        caller = endpoint(ruling.caller, port if ruling.believed else 0)
        entry.source, entry.destination = Party(ruling.source, source.identity, caller), ruling.destination
        if trace := _TRACE.fullmatch(ask.traceparent):
            entry.trace = trace[1]
        judged = ruling.judged
        if judged:
            entry.judged(judged.facts, judged.decision, opaque=judged.opaque)
        if ruling.status != 200 or not judged:
            self._answer(link, asked, entry, ruling.status, ruling.reason)
            return
        if over := self.budgets.charge(snapshot, judged.workload, Direction.INBOUND, entry):
            self._answer(link, asked, entry, 429, over)
            return
        try:
            own = port if ruling.believed else 0
            sock = self._dialled(snapshot, judged.workload, judged.where, ruling.caller, entry, port=own)
        except OSError as error:
            reason = f"cannot dial {endpoint(*judged.where)}: {error.strerror or error}"
            self._answer(link, asked, entry, 503, reason)
            return
        Leg(sock, link, asked.stream, self._book, entry)

    def _answer(self, link: Link, asked: Asked, entry: Entry, status: int, reason: str) -> None:
        link.core.answer(asked.stream, status)
        link.touch()
        self._book.close(entry, Verdict.FAILED if status == 503 else Verdict.REFUSED, reason)
        link.freed()

    # ---- captured in plaintext

    def plaintext(self, snapshot: Snapshot, workload: str, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A connection without identity, captured on its way in. `workload` is set where the whole namespace is its."""
        entry = self._book.enter(Direction.INBOUND, Security.PLAINTEXT, Party(address=endpoint(*peer[:2])))
        try:
            where = original_destination(sock)
        except (NotRedirected, OSError) as error:
            self._refuse(sock, entry, str(error))
            return
        entry.destination = Party(address=endpoint(*where))
        if not self.capturing:
            self._fail(sock, [entry], NO_MORE)
            return
        found: Workload | Refuse | None
        if workload:  # whatever the address: inside, each is its own
            found = next((w for w in snapshot.here.values() if w.title == workload and where[1] in w.spec.ports), None)
        else:
            found = here(snapshot, *where)
        if not isinstance(found, Workload):
            self._refuse(sock, entry, found.reason if found else f"no workload here serves {endpoint(*where)}")
            return
        domain = snapshot.mesh.spec.trust_domain if snapshot.mesh else ""
        entry.destination = Party(found.title, str(found.identity(domain)), endpoint(*where))
        reason = self._denied(snapshot, entry, Facts(None, peer[0], *where), found)
        listener = Role.PLAINTEXT if workload else None
        if reason or (reason := self.budgets.charge(snapshot, found, Direction.INBOUND, entry, 2, listener)):
            self._refuse(sock, entry, reason)
            return
        self._join(snapshot, sock, found, where, peer[0], [entry])

    # ---- from a neighbour

    def local(
        self,
        snapshot: Snapshot,
        sock: socket.socket,
        caller: str,
        out: Entry,
        source: WorkloadIdentity,
        destination: Workload,
        where: tuple[str, int],
    ) -> None:
        """A connection between two workloads of this node: judged as any other, and entered for both ends."""
        domain = source.trust_domain
        party = Party(destination.title, str(destination.identity(domain)), endpoint(*where))
        out.destination = party
        entry = self._book.enter(Direction.INBOUND, Security.LOCAL, out.source)
        entry.destination = party
        out.trace = entry.trace = os.urandom(16).hex()
        reason = self._denied(snapshot, entry, Facts(source, caller, *where), destination)
        if reason or (reason := self.budgets.charge(snapshot, destination, Direction.INBOUND, entry)):
            if out.account is not None:
                out.account.rebuffed()
            self._refuse(sock, entry, reason)
            self._book.close(out, Verdict.REFUSED, reason)
            return
        self._join(snapshot, sock, destination, where, caller, [out, entry])

    # ---- dialling

    def dial(
        self,
        snapshot: Snapshot,
        sock: socket.socket,
        address: str,
        port: int,
        entries: list[Entry],
        via: Workload | None,
    ) -> None:
        """Carry a connection of `via`, or of nobody in particular, to a stranger, in plaintext."""
        if not self.capturing:
            self._fail(sock, entries, NO_MORE)
            return
        callee = None
        try:
            callee = self._stocked(via, _family(address)) if via is not None else None
            if callee is None:
                callee = dial_socket(_family(address), self.marks.agent)
            else:
                put_mark(callee, self.marks.agent)  # what carries the other mark never leaves its namespace
            _connect(callee, address, port)
        except OSError as error:
            if callee is not None:
                callee.close()
            self._fail(sock, entries, f"cannot dial {endpoint(address, port)}: {error.strerror or error}")
            return
        Pair(self._relay, sock, callee, self._book, entries)

    def _join(
        self,
        snapshot: Snapshot,
        sock: socket.socket,
        workload: Workload,
        where: tuple[str, int],
        caller: str,
        entries: list[Entry],
    ) -> None:
        try:
            callee = self._dialled(snapshot, workload, where, caller, *entries)
        except OSError as error:
            self._fail(sock, entries, f"cannot dial {endpoint(*where)}: {error.strerror or error}")
            return
        Pair(self._relay, sock, callee, self._book, entries)

    def _dialled(
        self,
        snapshot: Snapshot,
        workload: Workload,
        where: tuple[str, int],
        caller: str,
        *entries: Entry,
        port: int = 0,
    ) -> socket.socket:
        """A socket connecting to the workload, from the caller's address where it wants that and the kernel lets us.

        And from the caller's own `port`, if given and free here: the caller has no other connection from there, which
        this one might have to wait for (`redirect.guards.borrow`). Where the caller's own packets come to this machine
        it has just that, so none must be given.
        """
        family = _family(where[0])
        sock = self._stocked(workload, family)
        mode, keep = workload.spec.source_address, False
        if mode is SourceAddress.PRESERVE:
            # From a foreign address to loopback (or back) no route leads, so there the application sees the agent.
            alike = _family(caller) == family and is_loopback(caller) == is_loopback(where[0])
            keep = alike and bool(self.marks.spoof)
        elif mode is SourceAddress.PROXY_PROTOCOL:
            entry = entries[-1]
            entry.preface = proxyheader.header(
                parse_authority(entry.source.address) or (caller, 0), where, entry.source.identity
            )
        if sock is None:
            sock = spoof_socket(family, self.marks.spoof) if keep else dial_socket(family, self.marks.agent)
        try:
            if keep:
                try:
                    spoof_source(sock, caller)
                except OSError:
                    keep = False
            for entry in entries:
                entry.source_kept = keep
            _connect(sock, *where, port if keep else 0)
        except BaseException:
            sock.close()
            raise
        return sock

    def _stocked(self, workload: Workload, family: socket.AddressFamily) -> socket.socket | None:
        """A socket inside the workload's own network namespace, where it has one. None elsewhere, and only there: one
        of ours would lead to other places by the same addresses."""
        title = workload.title
        if not self._stocks.needed(title):
            return None
        sock = self._stocks.take(title, family)
        if sock is None:
            raise OSError(errno.EAGAIN, "no socket inside its network namespace yet")
        return sock

    def inside(self, workload: Workload) -> bool:
        """Whether the workload has a network namespace of its own."""
        return self._stocks.needed(workload.title)

    def _fail(self, sock: socket.socket, entries: list[Entry], reason: str) -> None:
        abort(sock)
        for entry in entries:
            self._book.close(entry, Verdict.FAILED, reason)

    def _refuse(self, sock: socket.socket, entry: Entry, reason: str) -> None:
        abort(sock)
        self._book.close(entry, Verdict.REFUSED, reason)


def _connect(sock: socket.socket, address: str, port: int, own: int = 0) -> None:
    """`own` is the port to connect from, if it is free; 0: any."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    preferred = own and prefer_port(sock, own)
    code = sock.connect_ex((address, port))
    if preferred and code == errno.EADDRNOTAVAIL:
        prefer_port(sock, 0)
        code = sock.connect_ex((address, port))
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))
