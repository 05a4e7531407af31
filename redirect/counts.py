"""What the kernel's counters say of each workload. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from redirect.names import BLOCKED, BYPASSED, CAPTURED, DNS, FROM, INTO, PASSED, SKIPPED, UNMESHED, UNMESHED_OF
from redirect.ruleset import Count

Totals = Mapping[str, Mapping[str, Iterable[Count]]]
"""The counters by chain and comment."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one workload since capture began. Connections: sent to the agent, and left in the kernel; `skipped` are those
    of the latter, in both directions, that a setting says to leave alone. `passed` are those, in
    both directions, that would have been captured had the agent been there.
    Packets of protocols that the mesh does not carry: `unmeshed` ones left in clear, `dns` those of them that ask for
    names, which are not counted twice, and `blocked` ones did not leave."""

    captured: int = 0
    bypassed: int = 0
    skipped: int = 0
    passed: int = 0
    unmeshed: int = 0
    dns: int = 0
    blocked: int = 0


def by_workload(totals: Totals) -> dict[str, Counts]:
    """By workload (namespace/name)."""

    def packets(chain: str, comment: str) -> int:
        return sum(c.packets for c in totals.get(chain, {}).get(comment, ()))

    found = {}
    for name in [chain.removeprefix(FROM) for chain in totals if chain.startswith(FROM)]:
        skipped = packets(FROM + name, SKIPPED) + packets(INTO + name, SKIPPED)
        bypassed = packets(FROM + name, BYPASSED) + skipped
        passed = packets(FROM + name, PASSED) + packets(INTO + name, PASSED)
        rest = [packets(UNMESHED_OF + name, comment) for comment in (UNMESHED, DNS, BLOCKED)]
        found[name] = Counts(packets(FROM + name, CAPTURED), bypassed, skipped, passed, *rest)
    return found
