"""The chains that take connections: those of workloads, and what arrives for them in plaintext. Pure."""

from collections.abc import Iterator

from redirect.desired import Capture, Desired
from redirect.names import BYPASSED, CAPTURED, FROM, INBOUND, MESH, PASSED, SERVES
from redirect.phrases import IS_TCP, rule, towards, towards_local_ports
from redirect.presence import PRESENT
from redirect.ruleset import (
    DADDR_TYPE,
    LOCAL,
    Chain,
    Code,
    Count,
    Match,
    Redirect,
    Rule,
    Statement,
    Verdict,
)
from redirect.skips import into, skips


def workload(capture: Capture, desired: Desired) -> Chain:
    """One workload's own connections. The chain is left by `goto`: nobody is recognised twice."""
    take = Count(), Redirect(capture.port)
    if_there = (PRESENT,) if capture.open else ()
    rules = [*skips(capture), *taken(desired, *if_there, *take, comment=CAPTURED)]
    if capture.open:
        # Whoever comes here would have been taken, had anybody been there.
        rules += taken(desired, Count(), Verdict(Code.GOTO, INBOUND), comment=PASSED)
    rules.append(rule(Count(), Verdict(Code.GOTO, INBOUND), comment=BYPASSED))
    return Chain(FROM + capture.workload, tuple(rules))


def taken(desired: Desired, *statements: Statement, comment: str) -> Iterator[Rule]:
    """The rules for what capture takes."""
    yield from towards(MESH, *statements, comment=comment)
    yield towards_local_ports(*statements, comment=comment)
    if desired.capture_all:
        yield rule(IS_TCP, Match(DADDR_TYPE, LOCAL, equal=False), *statements, comment=comment)


def inbound(desired: Desired) -> Chain:
    """Plaintext towards a workload of ours: from afar, or from here, lest local callers walk round STRICT."""
    take = Count(), Redirect(desired.inbound_port)
    return Chain(
        INBOUND,
        (
            *(each for capture in desired.captures for each in into(capture)),
            *towards(SERVES, *take, comment="plaintext in"),
            towards_local_ports(*take, comment="plaintext in"),
        ),
    )
