"""Connections that come from other network namespaces of this machine and should have been captured there. Pure.

A container that starts has a namespace, an address and a link-layer address that nobody has seen, and its program runs
before the engine tells of it. So behind the bridges on which containers of workloads live the kernel is told whom it
*need not* stop: stations known to be nobody's. Any other one's connections to the mesh wait: the packet that opens one
is dropped, TCP sends it again after a second, and by then the namespace has its own table. While the agent is away
nobody will make one, and they are refused. What does not go to the mesh is never touched.

A station is an address with its card, because engines lend the address of a container that ended to the next one.
"""

from collections.abc import Iterable, Iterator

from redirect.desired import Desired, Hold
from redirect.names import BRIDGES, HOLD, INSIDE, MESH, NEWCOMER, SETTLED, STRAY, VOUCHED, WAITS
from redirect.phrases import head, rule, towards, towards_local_ports
from redirect.presence import PRESENT
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
    if hold.bridges:
        yield Set(BRIDGES, Key.IFNAME, frozenset(map(interface_element, hold.bridges)))
        for names, stations in ((VOUCHED, hold.vouched), (SETTLED, hold.settled)):
            yield from _by_key(names, (station_element(*station) for station in stations))
    if hold.inside:
        yield from _by_key(INSIDE, map(address_element, hold.inside))


def _by_key(names: dict[Key, str], elements: Iterable[tuple[Key, bytes]]) -> Iterator[Set]:
    found = list(elements)
    for key, name in names.items():
        yield Set(name, key, frozenset(element for k, element in found if k is key))


def hold(desired: Desired) -> Iterator[Chain]:
    """The chain at the hook, behind the one that says whether the agent is there; and what becomes of who is held."""
    if not desired.hold.bridges and not desired.hold.inside:
        return
    refuse = tuple(_to_mesh(Count(), Reset(), comment="nobody makes it a table"))
    wait = _to_mesh(PRESENT, Count(), Verdict(Code.DROP), comment=WAITS)
    yield Chain(NEWCOMER, (*(wait if desired.told else ()), *refuse))
    yield Chain(STRAY, tuple(_to_mesh(Count(), Reset(), comment="older than its table")))
    yield Chain(
        HOLD, (*head(desired), *_whose(desired.hold)), Base("filter", Hook.PREROUTING, desired.marks.nat_priority)
    )


def _to_mesh(*statements: Statement, comment: str) -> Iterator[Rule]:
    yield from towards(MESH, *statements, comment=comment)
    yield towards_local_ports(*statements, comment=comment)


def _whose(held: Hold) -> Iterator[Rule]:
    stop = Verdict(Code.GOTO, NEWCOMER)
    if held.inside:
        # Of a borrowed address the agent's own connections come in by loopback.
        yield rule(Match(IIF, LOOPBACK), Verdict(Code.RETURN))
        yield rule(Match(NFPROTO, IPV4), Member((SADDR4,), INSIDE[Key.ADDRESS4]), stop)
        yield rule(Match(NFPROTO, IPV6), Member((SADDR6,), INSIDE[Key.ADDRESS6]), stop)
    if held.bridges:
        yield rule(Member((IIFNAME,), BRIDGES, inside=False), Verdict(Code.RETURN))
        for names, then in ((VOUCHED, Verdict(Code.RETURN)), (SETTLED, Verdict(Code.GOTO, STRAY))):
            for family, address, key in ((IPV4, SADDR4, Key.STATION4), (IPV6, SADDR6, Key.STATION6)):
                station = Member((address, SADDR_LINK), names[key])
                yield rule(Match(IIFTYPE, ETHERNET), Match(NFPROTO, family), station, then)
        yield rule(stop)
