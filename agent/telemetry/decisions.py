"""How often which policy decided: counted by the very reason that the log and `culvert connections` give.

Only what policies and modes say is counted. Other refusals quote what a peer sent, and would let a stranger make as
many series as he likes.
"""

import re
from collections.abc import Iterator

from agent.connections import Connection, Direction, Verdict

MOST = 1000
"""Reasons kept apart; what comes beyond is counted together. A node's workloads have a few policies each."""
OTHERS = "others"
NONE = "no policy stands against it"

_POLICY = re.compile(r"policy (\S+?/\S+?)(?: rule \d+|,|$| )|peer authentication (\S+?):? ")
_OURS = re.compile(r"denied by policy |allowed by no rule of policy |peer authentication |mode [A-Z]+ of the mesh")


class Decisions:
    """Counts of (decision, reason); decision is allowed, denied or would-deny (a dry run)."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def began(self, connection: Connection) -> None:
        """It was judged. Once for each connection."""
        if connection.direction is not Direction.INBOUND:
            return  # the far end judges
        if connection.carried or connection.policy:
            self._count("allowed", connection.policy or NONE)
        if connection.dry_run:
            self._count("would-deny", connection.dry_run)

    def ended(self, connection: Connection) -> None:
        """It was refused, at first or by a later change, or ended for another reason. Once for each connection."""
        if connection.verdict is not Verdict.REFUSED or connection.direction is not Direction.INBOUND:
            return
        if _OURS.match(connection.reason):
            self._count("denied", connection.reason)

    def rows(self) -> Iterator[tuple[tuple[str, str, str], int]]:
        """((decision, policy as namespace/name, reason), connections) in order."""
        for (decision, reason), count in sorted(self._counts.items()):
            yield (decision, policy_of(reason), reason), count

    def _count(self, decision: str, reason: str) -> None:
        key = (decision, reason)
        count = self._counts.get(key)
        if count is None and len(self._counts) >= MOST:
            key = (decision, OTHERS)
            count = self._counts.get(key)
        self._counts[key] = (count or 0) + 1


def policy_of(reason: str) -> str:
    """The first policy that a reason names; empty if it names none."""
    found = _POLICY.search(reason)
    return (found[1] or found[2]) if found else ""
