"""The chains that take connections: those of workloads, and what arrives for them in plaintext. Pure."""

from redirect.desired import Capture, Desired
from redirect.names import BYPASSED, CAPTURED, FROM, INBOUND, MESH, SERVES
from redirect.phrases import IS_TCP, rule, towards, towards_local_ports
from redirect.ruleset import (
    DADDR_TYPE,
    LOCAL,
    Chain,
    Code,
    Count,
    Match,
    Redirect,
    Verdict,
)
from redirect.skips import into, skips


def workload(capture: Capture, desired: Desired) -> Chain:
    """One workload's own connections. The chain is left by `goto`: nobody is recognised twice."""
    take = Count(), Redirect(capture.port)
    rules = [
        *skips(capture),
        *towards(MESH, *take, comment=CAPTURED),
        towards_local_ports(*take, comment=CAPTURED),
    ]
    if desired.capture_all:
        rules.append(rule(IS_TCP, Match(DADDR_TYPE, LOCAL, equal=False), *take, comment=CAPTURED))
    rules.append(rule(Count(), Verdict(Code.GOTO, INBOUND), comment=BYPASSED))
    return Chain(FROM + capture.workload, tuple(rules))


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
