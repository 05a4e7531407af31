"""What of a workload the mesh does not carry, UDP above all: counted, and dropped if a setting says so. Pure.

Capture takes the first packet of a TCP connection; here each packet is asked, at the hook that it leaves by, so that
the first rule lets TCP go at once, all but what opens a connection (see `reuse`). What the network needs to work at all
(ICMP, IGMP, ICMPv6) is nobody's traffic. The program is told of a drop at once: send(2) fails with EPERM.
"""

from collections.abc import Iterable, Iterator

from redirect import reuse
from redirect.desired import Capture, Desired, Rest
from redirect.names import BLOCKED, DNS, FROM, UNMESHED, UNMESHED_OF
from redirect.phrases import IS_TCP, agents_own, rule
from redirect.recognise import dispatch
from redirect.ruleset import (
    CT_DIRECTION,
    CT_DPORT,
    DPORT,
    FLAGS,
    L4PROTO,
    LOOPBACK,
    OIF,
    ORIGINAL,
    REPLY,
    SYN,
    TCP_FLAGS,
    UDP,
    Base,
    Chain,
    Code,
    Count,
    Hook,
    Match,
    Member,
    Rule,
    Verdict,
    VerdictMap,
)
from redirect.skips import skips_by_address

_NEEDED = (1, 2, 58)
"""ICMP, IGMP and ICMPv6."""


def unmeshed_maps(maps: Iterable[VerdictMap]) -> tuple[VerdictMap, ...]:
    """The maps by which workloads are told apart, leading to the chains of this file."""
    return tuple(
        VerdictMap(
            f"{UNMESHED}-{each.name}",
            each.key,
            frozenset(
                (element, Verdict(Code.GOTO, UNMESHED_OF + verdict.chain.removeprefix(FROM)))
                for element, verdict in each.elements
            ),
        )
        for each in maps
    )


def unmeshed(desired: Desired, maps: Iterable[VerdictMap]) -> Iterator[Chain]:
    """The chain at the hook, and one for each workload; none where there are no workloads."""
    if not desired.captures:
        return
    accept = Verdict(Code.ACCEPT)
    whole = (rule(Verdict(Code.GOTO, UNMESHED_OF + c.workload)) for c in desired.captures if c.recognise.everything)
    yield from (_workload(capture, desired) for capture in desired.captures)
    yield Chain(
        UNMESHED,
        (
            rule(IS_TCP, Match(TCP_FLAGS, SYN, FLAGS, equal=False), accept),
            *(rule(Match(L4PROTO, protocol), accept) for protocol in _NEEDED),
            *agents_own(desired.marks),
            *dispatch(maps),
            *whole,
            reuse.of_others(),
        ),
        Base("filter", Hook.OUTPUT, 0),
    )


def _workload(capture: Capture, desired: Desired) -> Chain:
    """A trial blocks nothing: it must take nothing away that ends later than it does."""
    rest = Rest.ALLOW if desired.until is not None else capture.rest
    count, accept, drop = Count(), Verdict(Code.ACCEPT), Verdict(Code.DROP)
    if rest is Rest.ALLOW:
        rules = [*_dns(), rule(count, accept, comment=UNMESHED)]
    else:
        rules = [*_let(capture), *(_dns() if rest is Rest.BLOCK else ()), rule(count, drop, comment=BLOCKED)]
    return Chain(UNMESHED_OF + capture.workload, (*reuse.of_workload(capture, desired), *rules))


def _dns() -> Iterator[Rule]:
    """Questions for names, and what a resolver in the workload's own namespace answers. A container engine's has them
    come to a port that it made up: of those the connection knows what was asked for."""
    asked = Match(CT_DPORT, 53)
    for question in (
        (Match(DPORT, 53),),
        (Match(CT_DIRECTION, ORIGINAL), asked),
        (Match(CT_DIRECTION, REPLY), asked, Match(OIF, LOOPBACK)),
    ):
        yield rule(Match(L4PROTO, UDP), *question, Count(), Verdict(Code.ACCEPT), comment=DNS)


def _let(capture: Capture) -> Iterator[Rule]:
    """What a setting has the mesh leave alone is not blocked either."""
    then = Count(), Verdict(Code.ACCEPT)
    if capture.skip.ports:
        yield rule(Match(L4PROTO, UDP), Member((DPORT,), f"skip/{capture.workload}"), *then, comment=UNMESHED)
    yield from skips_by_address(capture, then, UNMESHED)
