"""Connections on their way to a local workload: out of tunnels, captured in plaintext, or from a neighbour here.

All three come to the same points: find the workload, judge, dial it. The connection is in the book before it is judged.
"""

import errno
import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from functools import lru_cache

from agent import opaque, proxyheader
from agent.authorize import Authorizer
from agent.book import Book, Entry
from agent.connections import Direction, Party, Security, Verdict
from agent.policy import Facts
from agent.relay.leg import Leg, abort
from agent.relay.loop import Relay
from agent.relay.pair import Pair
from agent.route import Refuse, clash, exactly, here, is_loopback
from agent.snapshot import Snapshot
from agent.stock import Stocks
from agent.tunnel.headers import Connect
from agent.tunnel.link import Link
from agent.tunnel.stream import Asked
from ca.identity import WorkloadIdentity
from ca.resources.workload import NEVER_CAPTURED, SourceAddress, Workload
from redirect.origdst import (
    NotRedirected,
    dial_socket,
    original_destination,
    put_mark,
    spoof_socket,
    spoof_source,
)

_AUTHORITY = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})")
_FORWARDED = re.compile(r'for="(\[?[0-9a-fA-F:.]{2,45}\]?):([0-9]{1,5})"')
_TRACE = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def endpoint(address: str, port: int) -> str:
    """`address:port`, with the brackets that IPv6 needs."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@lru_cache(maxsize=4096)
def parse_authority(text: str) -> tuple[str, int] | None:
    """(address, port) of a CONNECT's authority; None unless it is an IP address and a port, in any spelling."""
    found = _AUTHORITY.fullmatch(text)
    if not found:
        return None
    try:
        address = str(ipaddress.ip_address(found[1] or found[2]))
    except ValueError:
        return None
    port = int(found[3])
    return (address, port) if 0 < port < 65536 else None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(slots=True)
class Marks:
    """Marks for dialled sockets; `spoof` is 0 where the kernel cannot dial from foreign addresses."""

    agent: int
    spoof: int


class Inbound:
    """Judges and dials. Errors of a peer or a workload end its connection and stand in the book."""

    def __init__(self, relay: Relay, book: Book, stocks: Stocks, marks: Marks, authorizer: Authorizer) -> None:
        self._relay, self._book, self._stocks, self.marks = relay, book, stocks, marks
        self._authorizer = authorizer

    def _denied(self, snapshot: Snapshot, entry: Entry, facts: Facts, workload: Workload) -> str:
        """Judge; why not, or nothing. The entry keeps what is needed to judge again."""
        decision = self._authorizer.judge(snapshot, facts, workload)
        entry.opaque = opaque.arriving(snapshot, workload, facts.source, facts.port)
        entry.facts, entry.dry_run = facts, decision.would_deny
        if not decision.allowed:
            return decision.reason
        entry.policy = decision.reason
        return ""

    # ---- out of tunnels

    def asked(self, snapshot: Snapshot, link: Link, asked: Asked) -> None:
        """A peer opened a stream."""
        ask = asked.ask
        source = Party(identity=str(link.peer), address=endpoint(link.peer_address, 0))
        entry = self._book.enter(Direction.INBOUND, Security.MTLS, source)
        entry.tunnel = link.number
        if ask is None:
            self._answer(link, asked, entry, 400, asked.reason)
            return
        caller = self._caller(snapshot, link, ask)
        entry.source = Party(_titles(snapshot, link.peer, caller), str(link.peer), endpoint(*caller))
        if trace := _TRACE.fullmatch(ask.traceparent):
            entry.trace = trace[1]
        where = parse_authority(ask.authority)
        if where is None:
            self._answer(link, asked, entry, 400, f"authority {ask.authority!r} is no IP address and port")
            return
        entry.destination = Party(address=endpoint(*where))
        if where[1] in NEVER_CAPTURED:
            self._answer(link, asked, entry, 503, f"port {where[1]} is one of Culvert's own")
            return
        meant = exactly(snapshot, *where)
        if len(meant) > 1:
            self._answer(link, asked, entry, 503, clash(meant, *where).reason)
            return
        domain = snapshot.mesh.spec.trust_domain if snapshot.mesh else ""
        if not meant or meant[0].identity(domain) != link.local:
            self._answer(link, asked, entry, 400, f"no workload here is {link.local} at {endpoint(*where)}")
            return
        workload = meant[0]
        entry.destination = Party(workload.title, str(link.local), endpoint(*where))
        if reason := self._denied(snapshot, entry, Facts(link.peer, caller[0], *where), workload):
            self._answer(link, asked, entry, 401, reason)
            return
        try:
            sock = self._dialled(snapshot, workload, where, caller[0], entry)
        except OSError as error:
            self._answer(link, asked, entry, 503, f"cannot dial {endpoint(*where)}: {error.strerror or error}")
            return
        Leg(sock, link, asked.stream, self._book, entry)

    def _answer(self, link: Link, asked: Asked, entry: Entry, status: int, reason: str) -> None:
        link.core.answer(asked.stream, status)
        link.touch()
        self._book.close(entry, Verdict.FAILED if status == 503 else Verdict.REFUSED, reason)
        link.freed()

    def _caller(self, snapshot: Snapshot, link: Link, ask: Connect) -> tuple[str, int]:
        """Whom the peer says it speaks for, believed only where a workload with the peer's identity lives."""
        if found := _FORWARDED.fullmatch(ask.forwarded):
            address = found[1].strip("[]")
            domain = snapshot.mesh.spec.trust_domain if snapshot.mesh else ""
            for key in snapshot.by_address.get(address, ()):
                if snapshot.workloads[key].identity(domain) == link.peer:
                    return address, int(found[2])
        return link.peer_address, 0

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
        if reason := self._denied(snapshot, entry, Facts(None, peer[0], *where), found):
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
        if reason := self._denied(snapshot, entry, Facts(source, caller, *where), destination):
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
        self, snapshot: Snapshot, workload: Workload, where: tuple[str, int], caller: str, *entries: Entry
    ) -> socket.socket:
        """A socket connecting to the workload, from the caller's address where it wants that and the kernel lets us."""
        family = _family(where[0])
        sock = self._stocked(workload, family)
        mode = workload.spec.source_address
        if mode is SourceAddress.PROXY_PROTOCOL:
            entry = entries[-1]
            entry.preface = proxyheader.header(
                parse_authority(entry.source.address) or (caller, 0), where, entry.source.identity
            )
        # From a foreign address to loopback (or back) no route leads, so there the application sees the agent.
        keep = (
            mode is SourceAddress.PRESERVE
            and self.marks.spoof
            and _family(caller) == family
            and is_loopback(caller) == is_loopback(where[0])
        )
        if sock is None:
            sock = spoof_socket(family, self.marks.spoof) if keep else dial_socket(family, self.marks.agent)
        try:
            if keep:
                try:
                    spoof_source(sock, caller)
                except OSError:
                    keep = 0
            for entry in entries:
                entry.source_kept = bool(keep)
            _connect(sock, *where)
        except BaseException:
            sock.close()
            raise
        return sock

    def _stocked(self, workload: Workload, family: socket.AddressFamily) -> socket.socket | None:
        """A socket inside the workload's own network namespace, where it has one. None elsewhere, and only there: one
        of ours would lead to other places by the same addresses."""
        sock = self._stocks.take(workload.title, family)
        if sock is None and self._stocks.needed(workload.title):
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


def _connect(sock: socket.socket, address: str, port: int) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    code = sock.connect_ex((address, port))
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))


def _titles(snapshot: Snapshot, identity: WorkloadIdentity, caller: tuple[str, int]) -> str:
    """The workload that speaks, if only one with that identity lives at the caller's address."""
    found = [
        snapshot.workloads[key].title
        for key in snapshot.by_address.get(caller[0], ())
        if snapshot.workloads[key].identity(identity.trust_domain) == identity
    ]
    return found[0] if len(found) == 1 else ""
