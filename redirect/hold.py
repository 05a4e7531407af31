"""Connections that come from other network namespaces of this machine and should have been captured there. Pure.

A container that starts has a namespace, an address and a link-layer address that nobody has seen, and its program runs
before the engine tells of it. So behind the bridges on which containers of workloads live the kernel is told whom it
*need not* stop: stations known to be nobody's. Any other one's connections to the mesh wait: the packet that opens one
is dropped, TCP sends it again after a second, and by then the namespace has its own table. While the agent is away
nobody will make one, and they are refused; where all workloads behind a bridge fail open they wait just as well while
the agent is there, but pass while it is away, and are counted. What does not go to the mesh is never touched.

A station is an address with its card, because engines lend the address of a container that ended to the next one.
"""

from collections.abc import Iterable, Iterator

from redirect.desired import Desired, Hold
from redirect.names import (
    ATTENDED,
    BRIDGES,
    HOLD,
    INBOUND,
    INSIDE,
    MESH,
    NEWCOMER,
    OPEN_BRIDGES,
    OPEN_INSIDE,
    OPEN_NEWCOMER,
    PASSED_CONTAINERS,
    SETTLED,
    STRAY,
    VOUCHED,
    WAITS,
)
from redirect.phrases import head, rule, towards, towards_local_ports
from redirect.presence import ABSENT, PRESENT
from redirect.ruleset import (
    ETHERNET,
    IIF,
    IIFNAME,
    IIFTYPE,
    IPV4,
    IPV6,
    LOOPBACK,
    NFPROTO,
    SADDR4,
    SADDR6,
    SADDR_LINK,
    Base,
    Chain,
    Code,
    Count,
    Hook,
    Key,
    Match,
    Member,
    Reset,
    Rule,
    Set,
    Statement,
    Verdict,
    address_element,
    interface_element,
    station_element,
)


def hold_sets(hold: Hold) -> Iterator[Set]:
    """None where nobody is held."""
    for name, interfaces in ((BRIDGES, hold.bridges), (OPEN_BRIDGES, hold.open_bridges)):
        if interfaces:
            yield Set(name, Key.IFNAME, frozenset(map(interface_element, interfaces)))
    if hold.bridges or hold.open_bridges:
        yield from by_key(VOUCHED, (station_element(*station) for station in hold.vouched))
        yield from by_key(ATTENDED, (station_element(*station) for station in hold.attended))
    if hold.bridges:
        yield from by_key(SETTLED, (station_element(*station) for station in hold.settled))
    for names, addresses in ((INSIDE, hold.inside), (OPEN_INSIDE, hold.open_inside)):
        if addresses:
            yield from by_key(names, map(address_element, addresses))


def by_key(names: dict[Key, str], elements: Iterable[tuple[Key, bytes]]) -> Iterator[Set]:
    """The elements as the sets of these names, one for each kind."""
    found = list(elements)
    for key, name in names.items():
        yield Set(name, key, frozenset(element for k, element in found if k is key))


def hold(desired: Desired) -> Iterator[Chain]:
    """The chain at the hook, behind the one that says whether the agent is there; and what becomes of who is held."""
    held = desired.hold
    whose = tuple(_whose(held, desired.told))
    if not whose:
        return
    refuse = tuple(_to_mesh(Count(), Reset(), comment="nobody makes it a table"))
    wait = tuple(_to_mesh(PRESENT, Count(), Verdict(Code.DROP), comment=WAITS))
    if held.bridges or held.inside:
        yield Chain(NEWCOMER, (*(wait if desired.told else ()), *refuse))
    if held.open_bridges or held.open_inside:
        yield Chain(OPEN_NEWCOMER, wait)
    yield Chain(STRAY, tuple(_to_mesh(Count(), Reset(), comment="older than its table")))
    yield Chain(HOLD, (*head(desired), *whose), Base("filter", Hook.PREROUTING, desired.marks.nat_priority))


def _to_mesh(*statements: Statement, comment: str) -> Iterator[Rule]:
    yield from towards(MESH, *statements, comment=comment)
    yield towards_local_ports(*statements, comment=comment)


def _whose(held: Hold, told: bool) -> Iterator[Rule]:
    stop, stop_if_there, stray = (Verdict(Code.GOTO, name) for name in (NEWCOMER, OPEN_NEWCOMER, STRAY))
    for addresses, names, then in ((held.inside, INSIDE, stop), (held.open_inside, OPEN_INSIDE, stop_if_there)):
        if addresses:
            yield from _out_of(names, then)
    here = [name for name, of in ((BRIDGES, held.bridges), (OPEN_BRIDGES, held.open_bridges)) if of]
    if here:
        yield rule(*(_not_behind(name) for name in here), Verdict(Code.RETURN))
        if told:
            yield from _stations(ATTENDED, PRESENT, stray)
        yield from _stations(VOUCHED, Verdict(Code.RETURN))
    if held.bridges:
        yield from _stations(SETTLED, stray)
    if held.open_bridges:
        yield rule(*((_not_behind(BRIDGES),) if held.bridges else ()), stop_if_there)
    if held.bridges:
        yield rule(stop)


def _out_of(names: dict[Key, str], then: Verdict) -> Iterator[Rule]:
    # Of a borrowed address the agent's own connections come in by loopback.
    yield rule(Match(IIF, LOOPBACK), Verdict(Code.RETURN))
    yield rule(Match(NFPROTO, IPV4), Member((SADDR4,), names[Key.ADDRESS4]), then)
    yield rule(Match(NFPROTO, IPV6), Member((SADDR6,), names[Key.ADDRESS6]), then)


def _behind(name: str) -> Iterator[Rule]:
    """Only who comes from behind these bridges, and is not vouched for, gets past these rules."""
    yield rule(_not_behind(name), Verdict(Code.RETURN))
    yield from _stations(VOUCHED, Verdict(Code.RETURN))


def _not_behind(name: str) -> Member:
    return Member((IIFNAME,), name, inside=False)


def _stations(names: dict[Key, str], *then: Statement) -> Iterator[Rule]:
    for family, address, key in ((IPV4, SADDR4, Key.STATION4), (IPV6, SADDR6, Key.STATION6)):
        station = Member((address, SADDR_LINK), names[key])
        yield rule(Match(IIFTYPE, ETHERNET), Match(NFPROTO, family), station, *then)


def arrived(held: Hold) -> Iterator[Rule]:
    """What becomes of connections that arrive from elsewhere: those that pass for want of an agent are counted, once
    it is clear that nothing refuses them here."""
    if not held.open_bridges and not held.open_inside:
        yield rule(Verdict(Code.GOTO, INBOUND))
        return
    there = Verdict(Code.GOTO, PASSED_CONTAINERS)
    yield rule(Verdict(Code.JUMP, INBOUND))
    if held.open_inside:
        yield from _out_of(OPEN_INSIDE, there)
    if held.open_bridges:
        yield from _behind(OPEN_BRIDGES)
        yield rule(there)


def passed_containers(desired: Desired) -> Iterator[Chain]:
    """The chain that counts them. It stays, with its count, while all of them have a table of their own."""
    if desired.open_elsewhere or desired.hold.open_bridges or desired.hold.open_inside:
        yield Chain(PASSED_CONTAINERS, tuple(_to_mesh(ABSENT, Count(), comment="passed, nobody makes it a table")))
