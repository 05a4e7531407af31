"""Why two workloads can, or cannot, talk: a connection followed hop by hop over what centre and nodes say. Pure.

Nothing is dialled. What a node would do is decided by the very functions it uses; what it has (rules, certificates,
tunnels) comes from its own answers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from agent.answers import (
    CaptureAnswer,
    CertificatesAnswer,
    ConnectionsAnswer,
    StatusAnswer,
    TunnelsAnswer,
    WorkloadsAnswer,
)
from agent.authorize import Authorizer
from agent.connections import Connection, Direction
from agent.openings import skipped
from agent.policy import Facts
from agent.route import Direct, Local, Refuse, Tunnel, route
from agent.snapshot import Snapshot
from ca.contract import NodeStatus
from ca.resources.kinds import Resource
from ca.resources.workload import Workload

State = Literal["ok", "fail", "unknown"]


class Hop(msgspec.Struct, frozen=True):
    """One step of the way. `about` is the object that decides it."""

    name: str
    state: State
    about: str
    text: str


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a node answered; None for what it did not, and `error` why."""

    error: str = ""
    status: StatusAnswer | None = None
    workloads: WorkloadsAnswer | None = None
    certificates: CertificatesAnswer | None = None
    capture: CaptureAnswer | None = None
    tunnels: TunnelsAnswer | None = None
    connections: ConnectionsAnswer | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """All that was asked: the desired state, what the centre says of the nodes, and what they say themselves."""

    revision: int
    objects: list[Resource]
    nodes: dict[str, NodeStatus] = field(default_factory=dict)
    facts: dict[str, NodeFacts] = field(default_factory=dict)

    def view(self, node: str) -> Snapshot:
        """The desired state as that node sees it."""
        return Snapshot(node).apply(self.revision, self.objects, [])


def explain(known: Known, source: Workload, address: str, port: int) -> list[Hop]:
    """The way of a connection from `source` to (address, port), up to and including the first hop that fails."""
    hops = []
    for hop in _way(known, source, address, port):
        hops.append(hop)
        if hop.state == "fail":
            break
    return hops


def _way(known: Known, source: Workload, address: str, port: int) -> Iterator[Hop]:
    here = source.spec.node
    view = known.view(here)
    domain = view.mesh.spec.trust_domain if view.mesh else ""
    yield _enrolled("source", view, source)
    yield from _node("source node", known, here)
    facts = known.facts.get(here, NodeFacts())
    yield _captured(facts, source)
    if skipped(view, source, address, port):
        text = "capture.out.skip names it: it goes on in plaintext, past the mesh, and arrives as a stranger's"
        yield Hop("route", "ok", f"{address}:{port}", text)
        yield from _as_a_stranger(known, view, source, address, port)
        return
    yield _certificate("source certificate", facts, str(source.identity(domain)))
    match route(view, address, port):
        case Refuse(reason):
            yield Hop("route", "fail", f"{address}:{port}", reason)
            return
        case Direct(reason):
            yield Hop("route", "ok", f"{address}:{port}", f"{reason}: it goes on in plaintext, outside the mesh")
            return
        case Local(destination):
            yield Hop("route", "ok", destination.title, f"on the same node {here}: no tunnel, the same checks")
            there = here
        case Tunnel(destination, _, node, tunnel_port):
            there = destination.spec.node
            yield Hop("route", "ok", destination.title, f"through node {there} at {node} port {tunnel_port}")
            yield from _node("destination node", known, there)
            identity = str(destination.identity(domain))
            yield _certificate("destination certificate", known.facts.get(there, NodeFacts()), identity)
            yield _tunnel(facts, str(source.identity(domain)), identity)
    caller = source.identity(domain)
    decision = Authorizer().judge(known.view(there), Facts(caller, view.address(source), address, port), destination)
    why = decision.reason or "no policy stands against it"
    yield Hop("policy", "ok" if decision.allowed else "fail", destination.title, why)
    yield _lately(known, here, there, source, destination, port)


def _as_a_stranger(known: Known, view: Snapshot, source: Workload, address: str, port: int) -> Iterator[Hop]:
    """The policy of whoever serves there, for somebody without an identity."""
    for destination in view.at(address, port):
        facts = Facts(None, view.address(source), address, port)
        decision = Authorizer().judge(known.view(destination.spec.node), facts, destination)
        why = decision.reason or "no policy stands against it"
        yield Hop("policy", "ok" if decision.allowed else "fail", destination.title, why)


def _enrolled(name: str, view: Snapshot, workload: Workload) -> Hop:
    if view.enrolled(workload):
        return Hop(name, "ok", workload.title, "enrolled")
    wanted = view.mesh.spec.enrolment.match_labels if view.mesh else {}
    labels = " ".join(f"{k}={v}" for k, v in wanted.items())
    text = f"not enrolled: culvert label workload {workload.title} {labels}"
    return Hop(name, "fail", workload.title, text)


def _node(name: str, known: Known, node: str) -> Iterator[Hop]:
    status = known.nodes.get(node)
    if status is None or not status.address:
        yield Hop(name, "fail", f"node {node}", "it has not joined: culvert central token create --node " + node)
        return
    if not status.connected:
        yield Hop(name, "unknown", f"node {node}", "it is not connected to the centre, and acts on what it knew last")
        return
    facts = known.facts.get(node, NodeFacts())
    if facts.status is None:
        yield Hop(name, "unknown", f"node {node}", facts.error or "it does not answer")
        return
    problems = "; ".join(facts.status.problems)
    if status.active < known.revision:
        text = f"it acts on revision {status.active} of {known.revision}" + (f": {problems}" if problems else "")
        yield Hop(name, "unknown", f"node {node}", text)
    elif not facts.status.ready:
        yield Hop(name, "fail", f"node {node}", f"not ready: {facts.status.not_ready}")
    else:
        text = f"ready at revision {status.active}" + (f", with problems: {problems}" if problems else "")
        yield Hop(name, "ok", f"node {node}", text)


def _captured(facts: NodeFacts, source: Workload) -> Hop:
    if facts.capture is None:
        return Hop("capture", "unknown", source.title, facts.error or "its node does not answer")
    if not facts.capture.on:
        return Hop("capture", "fail", source.title, "capture is off on its node: culvert capture on")
    for row in facts.capture.rows:
        if row.workload == source.title:
            where = f" in {row.place}" if row.place else ""
            return Hop("capture", "ok", source.title, f"by {row.recognised}{where}, {row.captured} so far")
    problems = "; ".join(p for p in facts.capture.problems if source.title in p)
    return Hop("capture", "fail", source.title, problems or "its node has no rule for it")


def _certificate(name: str, facts: NodeFacts, identity: str) -> Hop:
    if facts.certificates is None:
        return Hop(name, "unknown", identity, facts.error or "its node does not answer")
    for row in facts.certificates.rows:
        if row.identity == identity:
            left = (row.not_after - facts.certificates.time) / 3600
            if row.status == "valid":
                return Hop(name, "ok", identity, f"valid for {left:.1f} h, serial {row.serial}")
            reason = f": {row.reason}" if row.reason else ""
            return Hop(name, "fail" if left <= 0 else "ok", identity, f"{row.status}{reason}")
    return Hop(name, "fail", identity, "its node has none")


def _tunnel(facts: NodeFacts, source: str, destination: str) -> Hop:
    about = f"{source} -> {destination}"
    if facts.tunnels is None:
        return Hop("tunnel", "unknown", about, facts.error or "the source's node does not answer")
    for row in facts.tunnels.rows:
        ours = row.direction is Direction.OUTBOUND
        if ours and (row.local_identity, row.peer_identity) == (source, destination):
            return Hop(
                "tunnel", "ok", about, f"open to {row.peer_address}, {row.streams} streams, {row.carried} carried"
            )
    return Hop("tunnel", "ok", about, "none is open; the first connection dials one")


def _lately(known: Known, here: str, there: str, source: Workload, destination: Workload, port: int) -> Hop:
    """What became of the last connection between the two: tells what asking cannot, such as a closed port."""

    def between(connection: Connection) -> bool:
        ends = (connection.source.workload, connection.destination.workload)
        return ends == (source.title, destination.title) and connection.destination.address.endswith(f":{port}")

    found: list[Connection] = []
    for node in dict.fromkeys((there, here)):
        answer = known.facts.get(node, NodeFacts()).connections
        found += [c for c in (*answer.closed, *answer.live) if between(c)] if answer else []
    if not found:
        return Hop("last connection", "ok", destination.title, "none yet that the nodes remember")
    last = max(found, key=lambda c: c.opened + c.duration)
    if last.verdict.value == "allowed":
        return Hop(
            "last connection", "ok", destination.title, f"{last.state}, {last.sent} sent, {last.received} received"
        )
    return Hop("last connection", "fail", destination.title, f"{last.verdict.value}: {last.reason}")
