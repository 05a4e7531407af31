"""What is to be captured -> the ruleset that does it. Pure.

The table in the host's network namespace, and the one inside a workload's own, come from the same function; in the
latter every connection belongs to the one workload (`Recognise.everything`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from redirect.chains import inbound, workload
from redirect.desired import Desired
from redirect.guards import borrow, guard
from redirect.names import FROM, INBOUND, MESH, OUT, PRE, SERVES, TABLE
from redirect.phrases import head, rule
from redirect.recognise import dispatch, dispatch_maps
from redirect.ruleset import (
    MARK,
    SKUID,
    Base,
    Chain,
    Code,
    Hook,
    Key,
    Match,
    Member,
    Ruleset,
    Set,
    Verdict,
    VerdictMap,
    endpoint_element,
    number_element,
)


def plan(desired: Desired) -> Ruleset:
    """The table. A ValueError names two captures that contradict each other."""
    ports = Counter(c.port for c in desired.captures)
    if doubled := sorted(port for port, times in ports.items() if times > 1):
        raise ValueError(f"capture port {doubled[0]} is kept for several workloads: the port is the identity")
    maps = dispatch_maps(desired.captures)
    return Ruleset(
        TABLE,
        sets=(
            *endpoint_sets(MESH, desired.mesh),
            *endpoint_sets(SERVES, (pair for c in desired.captures for pair in c.serves)),
            _numbers("local-ports", Key.PORT, (p for c in desired.captures if c.shares_address for _, p in c.serves)),
            _numbers("never", Key.PORT, desired.never),
            _numbers("kept-ports", Key.PORT, (desired.inbound_port, *ports)),
            _numbers("agents", Key.UID, desired.agent_uids),
        ),
        maps=maps,
        chains=(
            inbound(desired),
            *(workload(capture, desired) for capture in desired.captures),
            _out(desired, maps),
            Chain(PRE, (*head(), rule(Verdict(Code.GOTO, INBOUND))), Base("nat", Hook.PREROUTING, -100)),
            guard(desired),
            borrow(desired.marks),
        ),
    )


def endpoint_sets(names: Mapping[Key, str], pairs: Iterable[tuple[str, int]]) -> tuple[Set, ...]:
    """The pairs as two sets, one for each IP version."""
    found: dict[Key, set[bytes]] = {key: set() for key in names}
    for address, port in pairs:
        key, element = endpoint_element(address, port)
        found[key].add(element)
    return tuple(Set(names[key], key, frozenset(elements)) for key, elements in found.items())


def _numbers(name: str, key: Key, values: Iterable[int]) -> Set:
    """A set of ports or uids."""
    return Set(name, key, frozenset(number_element(key, value) for value in values))


def _out(desired: Desired, maps: tuple[VerdictMap, ...]) -> Chain:
    """Connections made on this machine. A mark alone exempts nobody: containers may set marks, but not our uid."""
    marks = desired.marks
    own = (
        rule(Match(MARK, mark, marks.mask), Member((SKUID,), "agents"), Verdict(Code.ACCEPT), comment="the agent's own")
        for mark in (marks.agent, marks.spoof)
    )
    everything = (rule(Verdict(Code.GOTO, FROM + c.workload)) for c in desired.captures if c.recognise.everything)
    return Chain(
        OUT,
        (*head(), *own, *dispatch(maps), *everything, rule(Verdict(Code.GOTO, INBOUND))),
        Base("nat", Hook.OUTPUT, -100),
    )
