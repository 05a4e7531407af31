"""Plaintext towards workloads in other network namespaces of this machine, while the agent is away. Pure.

A namespace that has its table refuses it there. One that was made anew meanwhile, such as that of a container that
restarted, has none until the agent is back; but all that reaches it from outside passes the machine's own table. So
that one refuses what would be refused inside. A container may have another address then: behind the bridges on which
workloads live, nobody is reached at a port of theirs but who is known to be somebody else.

The chains look at packets late, behind what translates destinations: of a port that an engine publishes they see the
one in the container. Among containers on one bridge nothing comes by here.
"""

from collections.abc import Iterator

from redirect.desired import Desired, Shelter
from redirect.hold import by_key
from redirect.names import LET_IN, LOCALLY, NEIGHBOURS, SHELTER, SHELTERED, SHELTERED_BEHIND, THROUGH
from redirect.phrases import IS_TCP, agents_own, head, rule, towards
from redirect.presence import PRESENT
from redirect.ruleset import (
    DADDR4,
    DADDR6,
    DPORT,
    IPV4,
    IPV6,
    NFPROTO,
    OIFNAME,
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
    Verdict,
    address_element,
    door_element,
    endpoint_sets,
)

_WHY = "nobody may be there to refuse it"


def shelter_sets(shelter: Shelter) -> Iterator[Set]:
    """None where nobody is sheltered."""
    if shelter.endpoints:
        yield from endpoint_sets(SHELTERED, shelter.endpoints)
    if shelter.behind:
        yield Set(SHELTERED_BEHIND, Key.DOOR, frozenset(door_element(*door) for door in shelter.behind))
        yield from endpoint_sets(LET_IN, shelter.let_in)
        yield from by_key(NEIGHBOURS, map(address_element, shelter.neighbours))


def shelter(desired: Desired) -> Iterator[Chain]:
    """The chains at the hooks, and the one that refuses. None where nobody can tell when the agent is away."""
    rules = tuple(_whose(desired.hold.shelter))
    if not rules or not desired.told:
        return
    away = rule(PRESENT, Verdict(Code.RETURN)), rule(Verdict(Code.GOTO, SHELTER))
    yield Chain(SHELTER, rules)
    yield Chain(THROUGH, (*head(desired), *away), Base("filter", Hook.FORWARD, 0))
    own = agents_own(desired.marks)
    yield Chain(LOCALLY, (*head(desired), *own, *away), Base("filter", Hook.OUTPUT, 0))


def _whose(shelter: Shelter) -> Iterator[Rule]:
    refuse = Count(), Reset()
    if shelter.endpoints:
        yield from towards(SHELTERED, *refuse, comment=_WHY)
    if shelter.behind:
        yield from towards(LET_IN, Verdict(Code.RETURN), comment="")
        for family, address, key in ((IPV4, DADDR4, Key.ADDRESS4), (IPV6, DADDR6, Key.ADDRESS6)):
            yield rule(Match(NFPROTO, family), Member((address,), NEIGHBOURS[key]), Verdict(Code.RETURN))
        yield rule(IS_TCP, Member((OIFNAME, DPORT), SHELTERED_BEHIND), *refuse, comment=_WHY)
