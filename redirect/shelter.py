"""Plaintext towards workloads in other network namespaces of this machine that have no table just now. Pure.

A namespace that has its table judges what arrives, or refuses it while the agent is away. One that was made anew, such
as that of a container that restarted, has none until the agent knows of it; but all that reaches it from outside passes
the machine's own table. So that one holds it back. While the agent is there it waits: what opens a connection is
dropped, and TCP sends it again after a second. While it is away, what would be refused inside is refused here, also
where the namespace was not made anew yet. A container may have another address then: behind the bridges on which such
workloads live, nobody is reached at a port of theirs but who is known to be somebody else.

The chains look at packets late, behind what translates destinations: of a port that an engine publishes they see the
one in the container. Among containers on one bridge nothing comes by here.
"""

from collections.abc import Iterator

from redirect.desired import Desired, Hold, Shelter
from redirect.hold import by_key
from redirect.names import LOBBY, LOCALLY, SHELTER, THROUGH
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
    Statement,
    Verdict,
    address_element,
    door_element,
    endpoint_sets,
)


def shelter_sets(hold: Hold) -> Iterator[Set]:
    """None where nobody is sheltered."""
    for chain, shelter in ((SHELTER, hold.shelter), (LOBBY, hold.lobby)):
        if hold.shelter.endpoints:
            yield from endpoint_sets(_at(chain), shelter.endpoints)
        if hold.shelter.behind:
            yield Set(_behind(chain), Key.DOOR, frozenset(door_element(*door) for door in shelter.behind))
            yield from endpoint_sets(_let_in(chain), shelter.let_in)
            yield from by_key(_neighbours(chain), map(address_element, shelter.neighbours))


def shelter(desired: Desired) -> Iterator[Chain]:
    """The chains at the hooks, and where they lead. None where nobody can tell when the agent is away."""
    held = desired.hold.shelter
    if not desired.told or not (held.endpoints or held.behind):
        return
    yield Chain(SHELTER, tuple(_whose(SHELTER, held, Count(), Reset(), comment="nobody may be there to refuse it")))
    yield Chain(
        LOBBY, tuple(_whose(LOBBY, held, Count(), Verdict(Code.DROP), comment="nobody is there yet to judge it"))
    )
    there = rule(PRESENT, Verdict(Code.GOTO, LOBBY)), rule(Verdict(Code.GOTO, SHELTER))
    yield Chain(THROUGH, (*head(desired), *there), Base("filter", Hook.FORWARD, 0))
    own = agents_own(desired.marks)
    yield Chain(LOCALLY, (*head(desired), *own, *there), Base("filter", Hook.OUTPUT, 0))


def _whose(chain: str, like: Shelter, *then: Statement, comment: str) -> Iterator[Rule]:
    """Rules for what `like` has anything of, so that they stay as they are while the lobby fills and empties."""
    if like.endpoints:
        yield from towards(_at(chain), *then, comment=comment)
    if like.behind:
        yield from towards(_let_in(chain), Verdict(Code.RETURN), comment="")
        for family, address, key in ((IPV4, DADDR4, Key.ADDRESS4), (IPV6, DADDR6, Key.ADDRESS6)):
            yield rule(Match(NFPROTO, family), Member((address,), _neighbours(chain)[key]), Verdict(Code.RETURN))
        yield rule(IS_TCP, Member((OIFNAME, DPORT), _behind(chain)), *then, comment=comment)


def _at(chain: str) -> dict[Key, str]:
    return {Key.ENDPOINT4: f"{chain}4", Key.ENDPOINT6: f"{chain}6"}


def _behind(chain: str) -> str:
    return f"{chain}-behind"


def _let_in(chain: str) -> dict[Key, str]:
    return {Key.ENDPOINT4: f"{chain}-let-in4", Key.ENDPOINT6: f"{chain}-let-in6"}


def _neighbours(chain: str) -> dict[Key, str]:
    return {Key.ADDRESS4: f"{chain}-neighbours4", Key.ADDRESS6: f"{chain}-neighbours6"}
