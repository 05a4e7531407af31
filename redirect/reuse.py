"""A source port that is used again while its last connection is still known. Pure.

What is translated is decided once, for the first packet of a connection, and the kernel remembers it: for ten seconds
after the other side has reset the connection, or for minutes if nobody ever answered. Who dials from the same port to
the same place meanwhile is taken for that connection. A stranger would so arrive at a workload's capture port, which
stands for its identity; and a workload would go out in clear by what a stranger, or itself before it was enrolled, had
left. Each SYN is therefore asked on its way out whether it goes where its sender's should. What does not waits, as TCP
sends it again, until the kernel has forgotten.
"""

from collections.abc import Iterator

from redirect.chains import taken
from redirect.desired import Capture, Desired
from redirect.phrases import IS_TCP, OVER, rule
from redirect.ruleset import CT_STATUS, CT_TRANSLATED, DNAT, SEEN_REPLY, Code, Count, Match, Member, Rule, Verdict

IDENTITIES = "identity-ports"
"""The set of all workloads' capture ports."""

_DROP = Count(), Verdict(Code.DROP)
_TRANSLATED = Match(CT_STATUS, DNAT, DNAT)  # else it is the port of somebody else that was dialled
_ANOTHERS = rule(IS_TCP, _TRANSLATED, Member((CT_TRANSLATED,), IDENTITIES), *_DROP, comment="another's connection")


def of_workload(capture: Capture, desired: Desired) -> Iterator[Rule]:
    """What a workload's own SYN passes, and all other TCP of it; any, when a trial is over."""
    accept = Verdict(Code.ACCEPT)
    yield rule(IS_TCP, _TRANSLATED, Match(CT_TRANSLATED, capture.port), accept)
    yield _ANOTHERS
    if desired.until is not None:
        yield rule(OVER, IS_TCP, accept, comment="not confirmed in time")
    yield from taken(desired, Match(CT_STATUS, SEEN_REPLY, SEEN_REPLY), *_DROP, comment="older than its capture")
    yield rule(IS_TCP, accept)


def of_others() -> Rule:
    """What everybody else's SYN passes."""
    return _ANOTHERS
