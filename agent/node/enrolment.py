"""What a view means for this node: who is to be captured where, and in which order a change is carried out. Pure.

Additions go certificates -> listeners -> rules, removals rules -> listeners -> certificates, so that no rule ever sends
a connection to a socket that is not there or to a worker that cannot speak for it. A change that does both is carried
out in two steps: first the rules that old and new have in common (`common`), at the end the new ones. A table of which
nothing is left is emptied in the first step and goes in the last.

A workload is admitted to capture when its certificate is here. Once captured it stays so until it is un-enrolled,
whatever becomes of the certificate: captured means held.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from agent.messages import Signs
from agent.node.view import MeshView
from agent.openings import closed_because, opening, rest, skip, unattended
from ca.resources.capture import FailMode
from ca.resources.mesh import Egress
from ca.resources.workload import Match
from redirect.cgroup import relative
from redirect.desired import Capture, Desired, Hold, Opening, Parent, Recognise, Rest, Shelter, Skip
from redirect.namespace import namespace_path

HOST = ""
"""The place that is the node's own network namespace; every other place is the path of a workload's own."""

NAMESPACED_PORT = 15001
"""Outbound capture port inside a workload's own namespace, where nobody else needs one."""

LOOPBACK = "127.0.0.1"

NO_CGROUP = 2**64 - 1
"""Less the capture port, it stands for the id of a cgroup that does not exist now: each such workload needs another
one, and the kernel counts inodes from the other end."""


class Ports(msgspec.Struct, frozen=True):
    """What the rules in the kernel refer to: they outlive us, so another workload must not get the port meanwhile.

    `outbound` is the capture port of each captured workload of the host, `namespaces` the place of each other captured
    workload; `bridges` those behind which its container lives or lived last; `last` the port given out last, so that a
    freed one is not given out again at once.
    """

    outbound: dict[str, int] = {}
    namespaces: dict[str, str] = {}
    last: int = 0
    bridges: dict[str, tuple[str, ...]] = {}


@dataclass(frozen=True, slots=True)
class Local:
    """An enrolled workload of this node. `serves` are its (address, port) pairs; `skip` and `opening` what of its
    connections, and of those to it, is left alone; `open` and `open_ports` what passes while the agent is away;
    `rest` what becomes of what is not TCP; `address` is its own, empty for its node's."""

    workload: str
    identity: str
    place: str
    match: Match
    serves: tuple[tuple[str, int], ...]
    shares_address: bool
    skip: Skip = field(default_factory=Skip)
    opening: Opening = field(default_factory=Opening)
    open: bool = False
    open_ports: tuple[int, ...] = ()
    rest: Rest = Rest.ALLOW
    address: str = ""

    @property
    def cgroup(self) -> str | None:
        """The cgroup to look up."""
        return self.match.cgroup


@dataclass(frozen=True, slots=True)
class Enrolment:
    """The enrolled workloads of this node that can be told apart, and a sentence for each that cannot."""

    locals: tuple[Local, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def identities(self) -> frozenset[str]:
        """The certificates needed."""
        return frozenset(w.identity for w in self.locals)

    def at(self, place: str) -> tuple[Local, ...]:
        """Those in one place."""
        return tuple(w for w in self.locals if w.place == place)


def enrol(view: MeshView) -> Enrolment:
    """The enrolment that a view asks for."""
    snapshot = view.snapshot
    if snapshot.mesh is None:
        return Enrolment()
    found: dict[tuple[str, Match], Local] = {}
    problems = []
    for workload in snapshot.local():
        match = view.matches.get(workload.key)
        if match is None:
            problems.append(f"workload {workload.title}: nothing says how to recognise it; give it spec.match")
            continue
        place = namespace_path(match.netns) if match.netns is not None else HOST
        # Inside its own namespace everything is the workload's, by whatever spelling the namespace is named.
        sign = Match(netns=place) if place else _plain(match)
        if (place, sign) in found:
            problems.append(
                f"workload {workload.title}: it is recognised by the same {_told(sign)} as "
                f"{found[place, sign].workload}, which goes first; give one of them another spec.match"
            )
            continue
        left_open, closed = opening(snapshot, workload)
        problems += closed
        found[place, sign] = Local(
            workload.title,
            str(workload.identity(snapshot.mesh.spec.trust_domain)),
            place,
            match,
            tuple(snapshot.endpoints(workload)),
            bool(place) or not workload.spec.address,
            skip(snapshot, workload),
            left_open,
            workload.spec.fail_mode is FailMode.OPEN,
            unattended(snapshot, workload),
            rest(snapshot, workload),
            workload.spec.address,
        )
    return Enrolment(tuple(found.values()), tuple(problems))


def admitted(enrolment: Enrolment, ports: Ports, certified: Collection[str]) -> tuple[Local, ...]:
    """Those to be captured now: captured before, or with a certificate among `certified`."""
    return tuple(w for w in enrolment.locals if w.identity in certified or _held(w, ports))


def allot(ports: Ports, wanted: Iterable[Local], pool: range) -> tuple[Ports, tuple[str, ...]]:
    """`ports` with a place in it for each wanted one, and a problem for each that found none. Takes nothing away."""
    outbound, namespaces, last = dict(ports.outbound), dict(ports.namespaces), ports.last
    problems = []
    for local in wanted:
        if local.place:
            namespaces[local.workload] = local.place
        elif outbound.get(local.workload) not in pool:
            outbound.pop(local.workload, None)
            taken = set(outbound.values())
            start = last + 1 if last in pool else pool.start
            order = (*range(start, pool.stop), *range(pool.start, start))
            port = next((p for p in order if p not in taken), None)
            if port is None:
                problems.append(
                    f"workload {local.workload}: all {len(pool)} capture ports are in use; widen capture_ports"
                )
                continue
            outbound[local.workload] = last = port
    return Ports(outbound, namespaces, last, ports.bridges), tuple(problems)


def guarded(view: MeshView, wanted: Iterable[Local], serves: Mapping[str, frozenset[int]]) -> tuple[Local, ...]:
    """`wanted` with the ports that are written on containers (`serves`, by their place) and that the mesh does not
    know: one that was stopped serves nothing there, until the centre hears that it has started, which may be long. As
    far as somebody may be refused at them: the others nobody need guard."""
    snapshot = view.snapshot
    found = []
    for local in wanted:
        more = serves.get(local.place, frozenset()) - {port for _, port in local.serves}
        workload = next((w for w in snapshot.here.values() if w.title == local.workload), None) if more else None
        ports = sorted(p for p in more if workload and closed_because(snapshot, workload, p))
        # In a place of its own all addresses are, so that any stands for all.
        found.append(replace(local, serves=(*local.serves, *((LOOPBACK, p) for p in ports))) if ports else local)
    return tuple(found)


def release(ports: Ports, captured: Iterable[Local]) -> Ports:
    """`ports` without what is no longer captured; to be called when no rule refers to it any more."""
    keep = list(captured)
    host = {w.workload for w in keep if not w.place}
    inside = {w.workload: w.place for w in keep if w.place}
    return Ports(
        {w: p for w, p in ports.outbound.items() if w in host},
        {w: p for w, p in ports.namespaces.items() if inside.get(w) == p},
        ports.last,
        {w: b for w, b in ports.bridges.items() if w in inside},
    )


def tables(
    view: MeshView,
    captured: Iterable[Local],
    ports: Ports,
    cgroups: Mapping[str, tuple[int, int] | None],
    base: Desired,
    parents: tuple[Parent, ...] = (),
    hold: Hold | None = None,
) -> dict[str, Desired]:
    """The table of each place that needs one. `cgroups` has (level, id) of each path, None for one that is not there;
    `base` what is the same everywhere; `parents` the cgroups below which those of workloads come and go; `hold` what
    the machine's own table holds back of other places."""
    mesh = view.snapshot.mesh
    found: dict[str, list[Capture]] = {}
    elsewhere = False
    for local in captured:
        elsewhere |= bool(local.open and local.place and (local.address or ports.bridges.get(local.workload)))
        port = NAMESPACED_PORT if local.place else ports.outbound.get(local.workload)
        if port is not None:
            recognise = _recognise(local, cgroups, port)
            capture = Capture(
                local.workload,
                recognise,
                port,
                local.serves,
                local.shares_address,
                local.skip,
                local.opening,
                local.open,
                local.open_ports,
                rest=local.rest,
            )
            found.setdefault(local.place, []).append(capture)
    hold = hold or Hold()
    if hold != Hold() or elsewhere:
        found.setdefault(HOST, [])
    everywhere = replace(
        base,
        mesh=frozenset(view.snapshot.by_endpoint),
        capture_all=mesh is not None and mesh.spec.egress is not Egress.BYPASS,
    )
    return {
        place: replace(
            everywhere,
            captures=tuple(captures),
            parents=() if place else parents,
            hold=Hold() if place else hold,
            open_elsewhere=elsewhere and not place,
        )
        for place, captures in found.items()
    }


def signs(captured: Iterable[Local], root: str) -> Signs:
    """How those of the host are told apart, for workers: as the rules do it. `root` is where cgroups are mounted."""
    cgroups: dict[str, str] = {}
    addresses: dict[str, str] = {}
    uids: dict[int, str] = {}
    for local in captured:
        match local.match:
            case _ if local.place:
                pass
            case Match(cgroup=str(path)):
                cgroups.setdefault(relative(path, root), local.workload)
            case Match(uid=int(uid)):
                uids[uid] = local.workload
            case Match(address=str(address)):
                addresses[address] = local.workload
    return Signs(cgroups, addresses, uids)


def common(old: Desired, new: Desired | None) -> Desired:
    """What both hold: the table for the time in between. It is there also where nothing is left to capture: what it
    captured is translated until it ends. A workload that is only recognised in another way (its unit got a new cgroup)
    is so at once: it must not slip through in between. So is what is left alone of it, for which no listener has to be
    made first, and what is known of cgroups, where there is one already for those that are not. Of one that shares its
    address the ports go on when that changes, as they are its own at whatever address. Stations are vouched for until
    their own table has come, and again before it goes. A trial that was confirmed does not end in between."""
    if new is None:
        return replace(
            old,
            captures=(),
            mesh=frozenset(),
            capture_all=False,
            until=None,
            hold=Hold(),
            open_elsewhere=False,
            parents=(),
        )
    after = {c.workload: c for c in new.captures}
    captures = tuple(
        replace(
            c,
            recognise=after[c.workload].recognise,
            skip=after[c.workload].skip,
            opening=after[c.workload].opening,
            rest=after[c.workload].rest,
            serves=_serve_both(c, after[c.workload]),
        )
        for c in old.captures
        if c.workload in after
    )
    return replace(
        old,
        captures=captures,
        mesh=old.mesh & new.mesh,
        capture_all=old.capture_all and new.capture_all,
        until=new.until,
        parents=new.parents if old.parents else (),
        hold=_hold_both(old.hold, new.hold),
    )


def _hold_both(old: Hold, new: Hold) -> Hold:
    """While we are there, who fails open is held like anybody."""
    bridges, inside = old.bridges & new.bridges, old.inside & new.inside
    return Hold(
        bridges,
        old.vouched | new.vouched,
        new.settled,
        new.attended,
        inside,
        (old.bridges | old.open_bridges) & (new.bridges | new.open_bridges) - bridges,
        (old.inside | old.open_inside) & (new.inside | new.open_inside) - inside,
        Shelter(
            old.shelter.endpoints & new.shelter.endpoints,
            old.shelter.behind & new.shelter.behind,
            old.shelter.neighbours | new.shelter.neighbours,
            old.shelter.let_in | new.shelter.let_in,
        ),
        new.lobby,
    )


def _serve_both(old: Capture, new: Capture) -> tuple[tuple[str, int], ...]:
    before, after = ({port for _, port in c.serves} if c.shares_address else frozenset[int]() for c in (old, new))
    kept = () if old.shares_address else tuple(p for p in old.serves if p[1] in after and p not in new.serves)
    return *kept, *(pair for pair in new.serves if pair in old.serves or pair[1] in before)


def _held(local: Local, ports: Ports) -> bool:
    if local.place:
        return ports.namespaces.get(local.workload) == local.place
    return local.workload in ports.outbound


def _recognise(local: Local, cgroups: Mapping[str, tuple[int, int] | None], port: int) -> Recognise:
    match local.match:
        case _ if local.place:
            return Recognise(everything=True)
        case Match(cgroup=str(path)):
            # A stopped unit has no cgroup, but its ports are still guarded on their way in.
            return Recognise(cgroup=cgroups.get(path) or (path.strip("/").count("/") + 1, NO_CGROUP - port))
        case Match(uid=uid, address=address):
            return Recognise(uid=uid, address=address)


def _plain(match: Match) -> Match:
    return Match(cgroup=relative(match.cgroup, "") or ".") if match.cgroup is not None else match


def _told(match: Match) -> str:
    (name,) = (f for f in match.__struct_fields__ if getattr(match, f) is not None)
    return f"{name} {getattr(match, name)}"
