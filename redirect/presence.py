"""How the kernel knows that the agent is there: a table that ends with it. Pure.

A workload that fails open is captured only while somebody answers. The table belongs to the agent's netlink socket, so
the kernel takes it away the moment the process is gone, however it went: no timeout to wait for, nothing to refresh.
While it stands it labels each connection that opens, and the rules of such workloads ask for the label. A label,
because a mark would meet other owners' rules.
"""

from redirect.desired import Marks
from redirect.names import OUT, PRE, PRESENCE
from redirect.phrases import IS_TCP, NOT_TCP, rule
from redirect.ruleset import CT_LABEL, FLAGS, SYN, TCP_FLAGS, Base, Chain, Hook, Match, PutLabel, Ruleset

LABEL = 117
"""The number of our bit among the 128 labels of a connection; `ct label 117` in nft."""
PRESENT = Match(CT_LABEL, 0, 1 << LABEL, equal=False)
ABSENT = Match(CT_LABEL, 0, 1 << LABEL)


def presence(marks: Marks) -> Ruleset:
    """The table, to be put in with its owner. Its chains run before those that redirect."""
    label = (NOT_TCP, rule(IS_TCP, Match(TCP_FLAGS, SYN, FLAGS), PutLabel(LABEL), comment="the agent is there"))
    return Ruleset(
        PRESENCE,
        chains=tuple(
            Chain(name, label, Base("filter", hook, marks.nat_priority - 1))
            for name, hook in ((OUT, Hook.OUTPUT), (PRE, Hook.PREROUTING))
        ),
    )
