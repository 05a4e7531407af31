"""What the kernel's counters say of each workload, and of who was held until it was known whose it is. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from redirect.names import (
    BLOCKED,
    BYPASSED,
    CAPTURED,
    DNS,
    FROM,
    INTO,
    LOBBY,
    NEWCOMER,
    OPEN_NEWCOMER,
    PASSED,
    PASSED_CONTAINERS,
    PASSED_UNITS,
    SHELTER,
    SKIPPED,
    STRAY,
    UNKNOWN,
    UNMESHED,
    UNMESHED_OF,
    WAITS,
)
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


@dataclass(frozen=True, slots=True)
class Held:
    """Attempts to connect to the mesh by somebody whom no rule knew. Packets that came out of a network namespace for
    which nobody had made a table (see `redirect.hold`): `waited` ones were dropped, and TCP sends them again; `refused`
    ones were reset. Connections of new cgroups that were `asked` about (see `redirect.unknown`). And attempts to reach
    a workload in another namespace (see `redirect.shelter`): `sheltered` ones were refused while the agent was away,
    `delayed` ones dropped because its namespace had no table yet, and TCP sends them again."""

    waited: int = 0
    refused: int = 0
    asked: int = 0
    sheltered: int = 0
    delayed: int = 0


@dataclass(frozen=True, slots=True)
class Unnamed:
    """Connections to the mesh that passed because the agent was away, of callers that nobody could name then: `units`
    in new cgroups, and `containers` out of network namespaces for which nobody had made a table. Only where every
    workload that they could have been of fails open."""

    units: int = 0
    containers: int = 0


@dataclass(frozen=True, slots=True)
class Counters:
    """By workload (namespace/name), and of nobody in particular."""

    workloads: Mapping[str, Counts] = field(default_factory=dict)
    held: Held = Held()
    unnamed: Unnamed = Unnamed()

    def plus(self, other: "Counters") -> "Counters":
        """With those of another namespace, in which other workloads live."""
        held, more = self.held, other.held
        unnamed, also = self.unnamed, other.unnamed
        return Counters(
            {**self.workloads, **other.workloads},
            Held(
                held.waited + more.waited,
                held.refused + more.refused,
                held.asked + more.asked,
                held.sheltered + more.sheltered,
                held.delayed + more.delayed,
            ),
            Unnamed(unnamed.units + also.units, unnamed.containers + also.containers),
        )


def counted(totals: Totals) -> Counters:
    """What the rules of one table have counted."""

    def packets(chain: str, comment: str) -> int:
        return sum(c.packets for c in totals.get(chain, {}).get(comment, ()))

    def all_packets(chain: str) -> int:
        return sum(packets(chain, comment) for comment in totals.get(chain, {}))

    found = {}
    for name in [chain.removeprefix(FROM) for chain in totals if chain.startswith(FROM)]:
        skipped = packets(FROM + name, SKIPPED) + packets(INTO + name, SKIPPED)
        bypassed = packets(FROM + name, BYPASSED) + skipped
        passed = packets(FROM + name, PASSED) + packets(INTO + name, PASSED)
        rest = [packets(UNMESHED_OF + name, comment) for comment in (UNMESHED, DNS, BLOCKED)]
        found[name] = Counts(packets(FROM + name, CAPTURED), bypassed, skipped, passed, *rest)
    waiting = packets(NEWCOMER, WAITS)
    waited = waiting + packets(OPEN_NEWCOMER, WAITS)
    refused = all_packets(NEWCOMER) - waiting + all_packets(STRAY)
    unnamed = Unnamed(all_packets(PASSED_UNITS), all_packets(PASSED_CONTAINERS))
    held = Held(waited, refused, all_packets(UNKNOWN), all_packets(SHELTER), all_packets(LOBBY))
    return Counters(found, held, unnamed)
