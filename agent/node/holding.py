"""What the machine's own table holds back of what other namespaces send, and refuses of what is sent to them: see
`redirect.hold` and `redirect.shelter`. Pure."""

from collections.abc import Collection, Iterable, Mapping
from itertools import product

from agent.discovery.tenants import Station, Tenants
from agent.node.enrolment import Local
from redirect.desired import Hold, Shelter, Skip


def hold(
    captured: Iterable[Local], bridges: Mapping[str, Iterable[str]], tenants: Tenants, ready: Collection[str]
) -> Hold:
    """`bridges` are those on which the container of each workload lives or lived last; `ready` the workloads whose own
    namespace has its table now. Who fails open is held for its own sake only while the agent is there, and what passes
    while it is away is counted where nobody is held for another's.

    What a setting lets out of a captured namespace, or what fails open, comes by here in clear and is right: it is
    vouched for as long as the table inside stands. The latter only while the agent is away.
    """
    own = {w.place: w for w in captured if w.place}
    closed, open_ = [w for w in own.values() if not w.open], [w for w in own.values() if w.open]
    behind, behind_open = ({name for w in some for name in bridges.get(w.workload, ())} for some in (closed, open_))
    inside, inside_open = (
        frozenset(
            w.address
            for w in some
            if w.address and not bridges.get(w.workload) and not (_lets_out(w) and w.workload in ready)
        )
        for some in (closed, open_)
    )
    sheltered = shelter(own.values(), bridges, tenants)
    lobby = shelter([w for w in own.values() if w.workload not in ready], bridges, tenants)
    if not behind and not behind_open:
        return Hold(inside=inside, open_inside=inside_open, shelter=sheltered, lobby=lobby)
    vouched, settled, attended = set(tenants.others), set[Station](), set[Station]()
    for place, stations in tenants.places.items():
        local = own.get(place)
        if local is None or (_lets_out(local) and local.workload in ready):
            vouched |= stations
            attended |= stations if local and local.skip == Skip() else frozenset()
    for local in closed:
        if not _lets_out(local):
            # Of several in one namespace one is a workload: what its station sends is the workload's.
            stations = tenants.places.get(local.place, frozenset())
            vouched -= stations
            attended -= stations
            settled |= stations if local.workload in ready else frozenset()
    return Hold(
        frozenset(behind),
        frozenset(vouched),
        frozenset(settled),
        frozenset(attended),
        inside,
        frozenset(behind_open - behind),
        inside_open,
        sheltered,
        lobby,
    )


def shelter(own: Iterable[Local], bridges: Mapping[str, Iterable[str]], tenants: Tenants) -> Shelter:
    """Where nobody is let in whom no table of theirs judges: `own` are workloads in namespaces of their own. Where a
    setting lets in some callers by their address, all are: it holds only where no policy would refuse anybody."""
    endpoints, behind, let_in = set[tuple[str, int]](), set[tuple[str, int]](), set[tuple[str, int]]()
    theirs = set[str]()
    for local in own:
        addresses = {a for a, _ in tenants.places.get(local.place, ())} | {a for a in (local.address,) if a}
        ports = {port for _, port in local.serves} - _lets_in(local)
        endpoints.update(product(addresses, ports))
        behind.update(product(bridges.get(local.workload, ()), ports))
        let_in.update(product(addresses, _lets_in(local)))
        theirs |= addresses if ports else set()
    if not behind:
        return Shelter(frozenset(endpoints))
    everybody = {a for stations in (tenants.others, *tenants.places.values()) for a, _ in stations}
    return Shelter(
        frozenset(endpoints), frozenset(behind), frozenset(everybody - theirs), frozenset(let_in - endpoints)
    )


def _lets_in(local: Local) -> frozenset[int]:
    opening = local.opening
    return frozenset((*opening.everyone, *(opening.ports if opening.networks else ()), *local.open_ports))


def lodgings(
    captured: Iterable[Local], before: Mapping[str, tuple[str, ...]], tenants: Tenants, lives: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """The bridges of each workload: where its container is now (`lives` has the bridge of an address), or was last."""
    found = {}
    for local in captured:
        now = {lives[a] for a, _ in tenants.places.get(local.place, ()) if a in lives} if local.place else set[str]()
        if names := tuple(sorted(now)) or before.get(local.workload, ()):
            found[local.workload] = names
    return found


def _lets_out(local: Local) -> bool:
    return local.open or local.skip != Skip()
