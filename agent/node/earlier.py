"""Connections of enrolled workloads that do not go through the agent: those that were there before enrolment. Pure.

Capture takes what opens a connection, so that these go on as they were, in clear. The kernel's list of sockets tells
them: each connection that the agent carries has a socket of the agent's at its other end, here, with our mark. Whose
remote end no such socket faces goes by itself.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Literal

from redirect.desired import Capture, Desired
from redirect.diag import CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, LISTEN, Sock

LIVE = frozenset({ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT})
"""States in which bytes can still flow."""

Way = Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class Earlier:
    """One connection as its workload's own socket has it; `way` is out if the workload made it."""

    workload: str
    way: Way
    sock: Sock


def earlier(
    socks: Iterable[Sock], table: Desired, cgroups: Mapping[str, Collection[int]] | None = None
) -> list[Earlier]:
    """Those among all sockets of one network namespace, where the table holds. `cgroups` has the ids of each workload's
    cgroup and all below it."""
    rows = list(socks)
    marks = table.marks
    ours = [s for s in rows if not all((s.mark ^ m) & marks.mask for m in (marks.agent, marks.spoof))]
    kept = {table.inbound_port, table.resolver_port, *(c.port for c in table.captures)}
    # What was redirected to us has another destination here than there; what we dial for a caller has not.
    redirected = {s.remote for s in ours if s.local[1] in kept}
    dialled = {(s.remote, s.local) for s in ours}
    facts = _Facts(
        table,
        cgroups or {},
        frozenset(s.local[1] for s in rows if s.state == LISTEN),
        frozenset((s.local, s.remote) for s in rows),
    )
    own = {s.identity for s in ours}
    live = (s for s in rows if s.state in LIVE and s.identity not in own)
    bare = (s for s in live if s.local not in redirected and (s.local, s.remote) not in dialled)
    return [found for sock in bare for found in facts.judge(sock)]


@dataclass(frozen=True, slots=True)
class _Facts:
    table: Desired
    cgroups: Mapping[str, Collection[int]]
    listening: frozenset[int]
    pairs: frozenset[tuple[tuple[str, int], tuple[str, int]]]

    def judge(self, sock: Sock) -> Iterator[Earlier]:
        if self._exempt(sock.local, here=True):
            return
        served = sock.local[1] in self.listening
        for capture in self.table.captures:
            if served and _serves(capture, sock.local) and not _opened(capture, sock):
                yield Earlier(capture.workload, "in", sock)
        if not served and not self._exempt(sock.remote, here=self._here(sock)):
            maker = self._maker(sock)
            if maker and self._taken(maker, sock):
                yield Earlier(maker.workload, "out", sock)

    def _exempt(self, end: tuple[str, int], here: bool) -> bool:
        table = self.table
        return end[1] in table.never or end in table.spared or (here and end[1] in table.login_ports)

    def _here(self, sock: Sock) -> bool:
        """Whether the other end is a socket of this namespace as well."""
        return (sock.remote, sock.local) in self.pairs

    def _maker(self, sock: Sock) -> Capture | None:
        """Whose socket it is, the closest description first, as the rules have it."""
        found = [(rank, c) for c in self.table.captures if (rank := self._rank(c, sock)) is not None]
        return min(found, key=lambda row: row[0])[1] if found else None

    def _rank(self, capture: Capture, sock: Sock) -> int | None:
        how = capture.recognise
        if how.cgroup is not None:
            return -how.cgroup[0] if sock.cgroup in self.cgroups.get(capture.workload, ()) else None
        if how.address is not None:
            return 1 if sock.local[0] == how.address else None
        if how.uid is not None:
            return 2 if sock.uid == how.uid else None
        return 3 if how.everything else None

    def _taken(self, capture: Capture, sock: Sock) -> bool:
        """Whether the connection would be captured if it were made now."""
        skip, (address, port) = capture.skip, sock.remote
        if port in skip.ports or sock.uid in skip.uids:
            return False
        if _inside(address, skip.networks):
            return False
        shared = self._here(sock) and any(c.shares_address and _port(c, port) for c in self.table.captures)
        return sock.remote in self.table.mesh or shared or (self.table.capture_all and not self._here(sock))


def _serves(capture: Capture, local: tuple[str, int]) -> bool:
    return local in capture.serves or (capture.shares_address and _port(capture, local[1]))


def _port(capture: Capture, port: int) -> bool:
    return any(port == served for _, served in capture.serves)


def _opened(capture: Capture, sock: Sock) -> bool:
    """Whether plaintext is let in there. That a uid of this machine is, nobody can tell from this end."""
    opening, port = capture.opening, sock.local[1]
    return port in opening.everyone or (port in opening.ports and _inside(sock.remote[0], opening.networks))


def _inside(address: str, networks: Iterable[str]) -> bool:
    return any(ip_address(address) in ip_network(network) for network in networks)
