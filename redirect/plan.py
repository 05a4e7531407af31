"""What is to be captured -> the ruleset that does it. Pure.

The table in the host's network namespace, and the one inside a workload's own, come from the same function; in the
latter every connection belongs to the one workload (`Recognise.everything`).
"""

from collections import Counter
from collections.abc import Iterator

from redirect.chains import inbound, workload
from redirect.desired import Desired
from redirect.guards import borrow, guard
from redirect.hold import arrived, hold, hold_sets, passed_containers
from redirect.names import FROM, INBOUND, MESH, OUT, PRE, SERVES, SPARED, TABLE, TRIAL
from redirect.phrases import agents_own, head, rule
from redirect.recognise import dispatch, dispatch_maps
from redirect.reuse import IDENTITIES
from redirect.ruleset import (
    TCP,
    Base,
    Chain,
    Code,
    Hook,
    Key,
    Ruleset,
    Set,
    Verdict,
    VerdictMap,
    endpoint_sets,
    numbers,
)
from redirect.shelter import shelter, shelter_sets
from redirect.skips import openings, skip_sets
from redirect.unknown import let_by, parent_sets, passed_units, unknown
from redirect.unmeshed import unmeshed, unmeshed_maps


def plan(desired: Desired, now: float = 0.0) -> Ruleset:
    """The table. `now` is read off the clock of `desired.until`. A ValueError names two captures that contradict each
    other."""
    ports = Counter(c.port for c in desired.captures)
    if doubled := sorted(port for port, times in ports.items() if times > 1):
        raise ValueError(f"capture port {doubled[0]} is kept for several workloads: the port is the identity")
    maps = dispatch_maps(desired.told_apart)
    rest = unmeshed_maps(maps)
    resolver = (desired.resolver_port,) if desired.asked else ()
    return Ruleset(
        TABLE,
        sets=(
            *endpoint_sets(MESH, desired.mesh),
            *endpoint_sets(SERVES, (pair for c in desired.captures for pair in c.serves)),
            numbers("local-ports", Key.PORT, (p for c in desired.captures if c.shares_address for _, p in c.serves)),
            numbers("never", Key.PORT, desired.never),
            *_exempt(desired, now),
            numbers("kept-ports", Key.PORT, (desired.inbound_port, *resolver, *ports)),
            numbers(IDENTITIES, Key.PORT, ports),
            numbers("agents", Key.UID, desired.agent_uids),
            *(each for capture in desired.captures for each in skip_sets(capture)),
            *parent_sets(desired.asked),
            *hold_sets(desired.hold),
            *shelter_sets(desired.hold),
        ),
        maps=(*maps, *rest),
        chains=(
            inbound(desired),
            *(chain for capture in desired.captures for chain in openings(capture, desired.inbound_port)),
            *(workload(capture, desired) for capture in desired.captures),
            _out(desired, maps),
            _pre(desired),
            *(unknown(port, desired.captures) for port in resolver),
            *guard(desired),
            *borrow(desired.marks),
            *unmeshed(desired, rest),
            *hold(desired),
            *shelter(desired),
            *passed_units(desired),
            *passed_containers(desired),
        ),
    )


def _exempt(desired: Desired, now: float) -> Iterator[Set]:
    """The sets of what is left alone here, and for how long the rest is taken."""
    if desired.login_ports:
        yield numbers("login-ports", Key.PORT, desired.login_ports)
    if desired.spared:
        yield from endpoint_sets(SPARED, desired.spared)
    if desired.until is not None:
        left = desired.until - now
        yield Set(TRIAL, Key.PASSING, frozenset({bytes([TCP])} if left > 0 else ()), left)


def _pre(desired: Desired) -> Chain:
    """Connections that arrive from elsewhere."""
    rules = (*head(desired), *arrived(desired.hold))
    return Chain(PRE, rules, Base("nat", Hook.PREROUTING, desired.marks.nat_priority))


def _out(desired: Desired, maps: tuple[VerdictMap, ...]) -> Chain:
    """Connections made on this machine."""
    everything = (rule(Verdict(Code.GOTO, FROM + c.workload)) for c in desired.captures if c.recognise.everything)
    whose = (*dispatch(maps, desired.asked), *everything, *let_by(desired))
    return Chain(
        OUT,
        (*head(desired), *agents_own(desired.marks), *whose, rule(Verdict(Code.GOTO, INBOUND))),
        Base("nat", Hook.OUTPUT, desired.marks.nat_priority),
    )
